"""All our errors, and the exit code that each of them gives to the command.

A message says what was found, what was wanted and what to do, with the path and the line or row.
"""

from __future__ import annotations

import errno
import re
import reprlib
from collections.abc import Sequence

# Values in messages come from files, also from hostile ones, and a message must stay readable.
_MAX_VALUE_LETTERS = 100
_MAX_MESSAGE_LETTERS = 2_000
_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = 80
_MAX_NAMES = 5
# Verbs whose form for one thing has more than an s.
_OF_ONE = {"are": "is", "were": "was", "have": "has", "do": "does"}


class VirnucproError(Exception):
    """Every error that a user can correct; the command shows the message and no traceback.

    Attributes:
        exit_code: With what the command ends.
        keeps_work: Whether a run can continue when its cause is gone, with what was finished
            before. The message does not say so, because not every command can continue.
    """

    # Scripts of users read the exit codes, which docs/command-line.md lists: none may change.
    exit_code = 1
    keeps_work = False


class UsageError(VirnucproError):
    """A setting has an invalid value, or two settings contradict each other."""

    exit_code = 2


class OutputExistsError(UsageError):
    """The output exists, and the user gave neither --force nor --resume."""


class OutputError(VirnucproError):
    """A file cannot be written: the disk is full, or a directory or permission is missing."""


def is_denied(error: BaseException) -> bool:
    """Tell whether the system does not let this user read or write a file."""
    # A mount that is read-only is no PermissionError.
    return isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS


def writing_remedy(error: OSError) -> str:
    """Return what a user can do about output that cannot be written."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "allow more open files (`ulimit -n`)"
    if error.errno in (errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS):
        return "choose another output, where you may write"
    return "make room, or choose another output"


class InputError(VirnucproError):
    """An input is missing or damaged, or is not what the command reads."""


class BackendError(VirnucproError):
    """A backend is missing, broken, or registered twice."""


class WeightsError(VirnucproError):
    """Model weights are missing, unreadable, unsafe to load, or of another architecture."""


class ClassifierError(WeightsError):
    """A classifier cannot be read, or does not fit the embeddings."""


class CheckpointError(VirnucproError):
    """A checkpoint is damaged or has an unknown format."""


class IdentityMismatchError(CheckpointError):
    """A checkpoint belongs to a run with another input, other weights or other settings."""


class NonFiniteEmbeddingError(VirnucproError):
    """An encoder returned NaN or infinity."""


class MemoryExhaustedError(VirnucproError):
    """The device ran out of memory."""

    exit_code = 4
    keeps_work = True


class ProcessError(VirnucproError):
    """A process of the run does not start, or was killed."""

    keeps_work = True


class IncompleteError(VirnucproError):
    """The output is complete except for the sequences that did not fit in the device's memory."""

    # Not 0, because a pipeline would not notice that some records have no score.
    exit_code = 2
    keeps_work = True


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: finished parts are kept, and the exit code is 143.

    Like KeyboardInterrupt, it is not an Exception, so that no handler on the way catches it.
    """

    # What a shell reports of a process that SIGTERM ended: 128 + 15. At SIGHUP, the shell is gone.
    exit_code = 143


INTERRUPTED = 130
"""The exit code after Ctrl-C, which shells expect: 128 + 2, the number of the signal."""


def keeps_work(error: BaseException | None) -> bool:
    """Tell whether a run can continue when the cause of `error` is gone."""
    match error:
        case OutputError():
            return keeps_work(error.__cause__)
        case VirnucproError():
            return error.keeps_work
        # People ask themselves whether a full disk has cost them the run.
        case OSError():
            return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        case _:
            return isinstance(error, (KeyboardInterrupt, MemoryError, Terminated))


def printable(text: str) -> str:
    r"""Return `text` with an escape such as `\\x1b` for each character that is not for reading.

    Such characters can control the terminal, or turn the direction of the text around. They come
    in ids, names of files and hosts, and in metrics. Line breaks and tabs stay.
    """
    # Every message of the log comes here, and nearly all are plain.
    if text.isprintable():
        return text
    return "".join(
        # `repr` writes the escape, between quotes.
        letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1]
        for letter in text
    )


def brief(value: object) -> str:
    """Return the repr of a value from a file, which stays short however large the value is."""
    try:
        text = _REPR.repr(value)
    # Python writes no numbers of more than 4,300 digits.
    except ValueError:
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= _MAX_VALUE_LETTERS else f"{text[:_MAX_VALUE_LETTERS]}..."


def shorten(text: str, max_letters: int) -> str:
    """Return a text of at most so many letters, with an ellipsis where it was cut."""
    return text if len(text) <= max_letters else f"{text[: max_letters - 1]}…"


def name_few(names: Sequence[object]) -> str:
    """Return a list of names: of many, the first five, and how many others there are."""
    listed = ", ".join(map(str, names[:_MAX_NAMES]))
    num_others = len(names) - _MAX_NAMES
    return f"{listed} and {num_others:,} more" if num_others > 0 else listed


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 record`, `1,200 batches`."""
    plural = "es" if noun.endswith(("ch", "s")) and noun != "epoch" else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def count_who(number: int, noun: str, verb: str, *, of: int | None = None) -> str:
    """Return a number with its noun and its verb: `1 row is`, or `2 of 5 records have`.

    Args:
        number: How many do it; they decide the form of the verb.
        noun: What one of them is called.
        verb: What several of them do, such as `are`.
        of: How many there are; None if this is not told.
    """
    who = count(number, noun) if of is None else f"{number:,} of {count(of, noun)}"
    return f"{who} {_OF_ONE.get(verb, f'{verb}s') if number == 1 else verb}"


def format_rounded(value: float) -> str:
    """Return a number that is not negative with two digits or more, and never as 1e+02."""
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.2g}"


def format_seconds(seconds: float, *, tenths: bool = False) -> str:
    """Return a duration in its two largest units, as people say it.

    With `tenths`, a duration of less than a minute has a decimal.
    """
    if tenths and seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {whole} s" if minutes else f"{whole} s"


def first_line(error: BaseException, *, with_file: bool = False) -> str:
    """Return the first line of another library's error, or its type if the error has no text.

    Args:
        error: The error.
        with_file: Also name the file of a system error, because the message names another or none.
    """
    # Some errors have no text, such as that of a bare `assert`.
    line = (_text(error).splitlines() or [type(error).__name__])[0]
    if with_file and isinstance(error, OSError) and error.filename:
        line = f"{error.filename}: {line}"
    return line[:_MAX_MESSAGE_LETTERS]


def on_one_line(error: BaseException) -> str:
    """Return the whole text of another library's error without line breaks."""
    return " ".join(_text(error).split())[:_MAX_MESSAGE_LETTERS]


def _text(error: BaseException) -> str:
    # The system's words alone: messages name the file themselves.
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    # Its number says nothing to people. Libraries repeat it in errors of their own.
    return re.sub(r"\[Errno -?\d+\] ", "", text)

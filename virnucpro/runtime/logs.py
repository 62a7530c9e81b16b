"""Where messages go: to standard error for people, and to log files that hold all of them."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from virnucpro import __version__
from virnucpro.checkpoints.whole_files import open_to_append
from virnucpro.errors import Terminated, UsageError, printable
from virnucpro.runtime.environment import is_main_process

_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Also of the fork's logs, which its users go on with.
_FIRST_WORDS = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")

_installed: list[logging.Handler] = []
_prefix: ContextVar[str] = ContextVar("prefix", default="")


def set_up_logging(level: int = logging.INFO, log_path: Path | None = None) -> None:
    """Send messages of `level` and above to standard error, and of INFO and above to `log_path`.

    In a launch of several processes, only the main process sends messages below WARNING. A second
    call replaces the handlers of the first.

    Raises:
        UsageError: `log_path` holds something else than a log.
        OSError: `log_path` cannot be written.
    """
    root = logging.getLogger()
    while _installed:
        handler = _installed.pop()
        root.removeHandler(handler)
        handler.close()
    console = _StderrHandler()
    console.setFormatter(_ConsoleFormatter())
    console.addFilter(_is_ours_or_warning)
    _install(console)
    set_console_level(level)
    if log_path is not None:
        _refuse_other_files(log_path)
        _install(_make_file_handler(_FileHandler, log_path))


def set_console_level(level: int) -> None:
    """Show messages of `level` and above on standard error; files hold INFO and above anyway."""
    for handler in _installed:
        if isinstance(handler, _StderrHandler):
            handler.setLevel(level)
    # In a launch, all processes would say the same, so the main one speaks. Warnings concern one.
    lowest = min(level, logging.INFO) if is_main_process() else logging.WARNING
    logging.getLogger().setLevel(lowest)


@contextmanager
def prefixed_messages(prefix: str) -> Iterator[None]:
    """Write `prefix` before the messages of this thread while the context lasts."""
    token = _prefix.set(prefix)
    try:
        yield
    finally:
        _prefix.reset(token)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append messages to `path` while the context lasts, and the error if one ends it.

    Raises:
        OSError: `path` cannot be written.
    """
    root, ours = logging.getLogger(), logging.getLogger("virnucpro")
    level_before = ours.level
    handler = _make_file_handler(_RunLogHandler, path)
    # For those who find the file later; whoever sees the console has just typed it.
    message = f"virnucpro {__version__}, in {Path.cwd()}: {shlex.join(sys.argv)}"
    handler.handle(ours.makeRecord(__name__, logging.INFO, __file__, 0, message, (), None))
    root.addHandler(handler)
    if is_main_process():
        # A user of the Python interface may not have set up any logging.
        ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
    try:
        yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, Terminated)):
            # Where a person or a system happened to stop it explains nothing.
            message, details = f"ended by {type(error).__name__}", None
        else:
            message = f"ended by {type(error).__name__}: {error}"
            # With the traceback, which helps whoever has to explain the error later.
            details = (type(error), error, error.__traceback__)
        record = ours.makeRecord(__name__, logging.ERROR, __file__, 0, message, (), details)
        # Only to this file: the command line shows the error to people.
        handler.handle(record)
        raise
    finally:
        ours.setLevel(level_before)
        root.removeHandler(handler)
        handler.close()


def _refuse_other_files(path: Path) -> None:
    # Messages at the end of an input would damage it. Devices and pipes take them as they come.
    if not path.is_file():
        return
    with path.open("rb") as file:
        beginning = file.read(100)
    if beginning and not _FIRST_WORDS.match(beginning):
        raise UsageError(
            f"{path}: exists and does not begin as a log, with a date and a time; name another "
            "file (-l)"
        )


def _make_file_handler(kind: type[_FileHandler], path: Path) -> logging.FileHandler:
    # Escapes, because ids and paths in messages may be no UTF-8.
    handler = kind(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Formatter(_FILE_FORMAT))
    handler.addFilter(_is_ours_or_warning)
    return handler


def _install(handler: logging.Handler) -> None:
    _installed.append(handler)
    logging.getLogger().addHandler(handler)


def _is_ours_or_warning(record: logging.LogRecord) -> bool:
    """Return whether to send a record; from other packages, users need only warnings."""
    return record.name.startswith("virnucpro") or record.levelno >= logging.WARNING


class _Formatter(logging.Formatter):
    """Leaves no character in a message that controls the terminal, in ids and paths for example."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        # Stages and passes of a screen have it in their names.
        if not record.message.startswith(_prefix.get()):
            record.message = _prefix.get() + record.message
        return super().formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        # With the time zone: logs are read on other machines, and run.json has UTC.
        moment = datetime.fromtimestamp(record.created).astimezone()
        return moment.isoformat(" ", "milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ConsoleFormatter(_Formatter):
    """Writes messages as they are, with "Warning: " or "Error: " before those, as click does."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.capitalize()}: {text}"


class _FileHandler(logging.FileHandler):
    """Drops messages that a full disk refuses: the run's own error says that the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _RunLogHandler(_FileHandler):
    """Writes to a file in a run's directory, where a link may lead astray; `-l` names any file."""

    def _open(self) -> Any:
        return open_to_append(Path(self.baseFilename), errors="backslashreplace")


class _StderrHandler(logging.StreamHandler[IO[str]]):
    """Looks up `sys.stderr` for each message, because the live view replaces it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

"""Where messages go: standard error for people, and files that tell the whole story."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from virnucpro.runtime.environment import is_main_process

_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_installed: list[logging.Handler] = []


def set_up_logging(level: int = logging.INFO, log_path: Path | None = None) -> None:
    """Send messages from `level` on to standard error, and informative ones to `log_path` too.

    In a launch of several processes only the main one speaks below warnings. A second call
    replaces what the first has set up.

    Raises:
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
        _install(_make_file_handler(log_path))


def set_console_level(level: int) -> None:
    """Show messages on standard error from `level` on; files always hold the informative ones."""
    for handler in _installed:
        if isinstance(handler, _StderrHandler):
            handler.setLevel(level)
    lowest = min(level, logging.INFO) if is_main_process() else logging.WARNING
    logging.getLogger().setLevel(lowest)


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append messages to `path` as long as the context lasts, and what ended it if it failed.

    Raises:
        OSError: `path` cannot be written.
    """
    root, ours = logging.getLogger(), logging.getLogger("virnucpro")
    level_before = ours.level
    handler = _make_file_handler(path)
    root.addHandler(handler)
    if is_main_process():
        # Whoever uses us from Python may have set up no logging at all.
        ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
    try:
        yield
    except BaseException as error:
        message = f"ended by {type(error).__name__}: {error}"
        details = (type(error), error, error.__traceback__)
        handler.handle(
            ours.makeRecord(__name__, logging.ERROR, __file__, 0, message, (), exc_info=details)
        )
        raise
    finally:
        ours.setLevel(level_before)
        root.removeHandler(handler)
        handler.close()


def _make_file_handler(path: Path) -> logging.FileHandler:
    handler = _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    handler.addFilter(_is_ours_or_warning)
    return handler


def _install(handler: logging.Handler) -> None:
    _installed.append(handler)
    logging.getLogger().addHandler(handler)


def _is_ours_or_warning(record: logging.LogRecord) -> bool:
    """Other packages are heard when they warn; their news is of no use to a user."""
    return record.name.startswith("virnucpro") or record.levelno >= logging.WARNING


class _ConsoleFormatter(logging.Formatter):
    """News as they are; warnings and errors say what they are, as click's own messages do."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.capitalize()}: {text}"


class _FileHandler(logging.FileHandler):
    """Loses what a full disk refuses: the run's own error will say that it is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _StderrHandler(logging.StreamHandler[IO[str]]):
    """Writes to what `sys.stderr` is at that moment: the live view stands in for it for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

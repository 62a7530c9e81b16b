"""Keeps a panic of native code, such as that of the tokenizers library, in one error of ours."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virnucpro.errors import WeightsError, first_line

# The descriptor belongs to the whole process: of two threads, one would restore the wrong one.
_LOCK = threading.RLock()


@contextmanager
def explaining_panics(path: Path) -> Iterator[None]:
    """Turn a panic, the crash of a library in Rust, into one error about `path`.

    Rust prints a panic, with a stack trace, before Python gets to know of it. So the text on
    standard error waits in a file meanwhile, and is left out if there was a panic.

    Raises:
        WeightsError: Native code panicked.
    """
    with _LOCK:
        try:
            kept, said = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115
        # There may be no standard error, or no place for a file.
        except OSError:
            yield
            return
        is_panic = False
        _flush_errors()
        # The descriptor itself, because Rust knows nothing of Python's sys.stderr.
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException as error:
            # pyo3 makes this class, which is no Exception, and no module has it.
            is_panic = type(error).__name__ == "PanicException"
            if not is_panic:
                raise
            raise WeightsError(
                f"{path}: breaks the library that reads it ({first_line(error)}); the file is "
                "damaged, or of another kind"
            ) from error
        finally:
            _flush_errors()
            os.dup2(kept, 2)
            os.close(kept)
            with said:
                said.seek(0)
                if not is_panic:
                    # Its disk may be full, which is no fault of the file that is read.
                    with suppress(OSError):
                        os.write(2, said.read())


def _flush_errors() -> None:
    # Python has no object for a standard error that is closed, and its disk may be full.
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()

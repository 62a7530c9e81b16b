"""The process from which the loader's workers are forked. To start it takes no import of torch."""

from __future__ import annotations

import multiprocessing.forkserver
import multiprocessing.util
import os
import sys
import tempfile

from virnucpro.runtime.environment import off_the_working_directory

# A socket's path has at most 107 bytes, and multiprocessing adds 32 to the directory.
_MAX_DIRECTORY_BYTES = 70
_SHORT_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")


def start_forkserver() -> None:
    """Start the process, unless it runs. It imports the slow modules once for all workers."""
    _shorten_socket_paths()
    # Not "spawn": each worker would import torch by itself, which takes seconds.
    context = multiprocessing.get_context("forkserver")
    # Each worker imports again what the program's main module has imported.
    main = [name for name in ("virnucpro.cli.main",) if name in sys.modules]
    context.set_forkserver_preload(["virnucpro.embedding.preload", *main])
    with off_the_working_directory():
        multiprocessing.forkserver.ensure_running()


def _shorten_socket_paths() -> None:
    """Let multiprocessing put its sockets elsewhere if TMPDIR is too long for their paths."""
    if len(os.fsencode(tempfile.gettempdir())) <= _MAX_DIRECTORY_BYTES:
        return
    before = tempfile.tempdir
    try:
        # multiprocessing asks `tempfile`, and that reads this variable.
        tempfile.tempdir = next(path for path in _SHORT_DIRECTORIES if os.access(path, os.W_OK))
        # It chooses once for this process and all that it starts.
        multiprocessing.util.get_temp_dir()
    except (StopIteration, OSError):
        pass
    finally:
        tempfile.tempdir = before

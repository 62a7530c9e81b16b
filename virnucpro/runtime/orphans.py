"""Processes of a launch end with the launcher that started them, however that ends."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import signal
import sys
import threading
import time

from virnucpro.errors import Terminated
from virnucpro.runtime.environment import RELAUNCHED

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
_POLL_SECONDS = 0.25
_CLEANUP_SECONDS = 1.0


@functools.cache
def end_with_launcher() -> None:
    """End this process within some seconds after its launcher, if it has one.

    A launcher that is killed can tell nobody. Its processes would wait for its store, some of them
    for minutes.
    """
    if RELAUNCHED in os.environ:
        launcher = int(os.environ[RELAUNCHED])
        # The system itself acts, at once. A thread must wait for Python's lock, which libraries may
        # hold for many seconds on a busy machine. Finished parts are safe from SIGKILL.
        end_with_parent(signal.SIGKILL)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun and accelerate start these processes themselves, so the parent is the launcher.
        # We do not know from which thread, and the system takes the end of that for the parent's.
        launcher = os.getppid()
    else:
        return
    # Not Linux, or torchrun, or a launcher that had ended before this process came here.
    threading.Thread(target=_watch, args=(launcher,), name="orphan", daemon=True).start()


def end_with_parent(number: int) -> None:
    """Let Linux send this process a signal when the thread that started it ends; 0 for none."""
    if sys.platform == "linux":
        # Python has no function for this call, and other systems do not have it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _watch(launcher: int) -> None:
    # When a parent ends, the system gives its children another one.
    while os.getppid() == launcher:
        time.sleep(_POLL_SECONDS)
    logger.warning("the launcher has ended, so process %d ends too", os.getpid())
    # First as a signal: the main thread then leaves its blocks, and the writer keeps what it has.
    os.kill(os.getpid(), signal.SIGTERM)
    # The main thread may wait in a library and not notice.
    time.sleep(_CLEANUP_SECONDS)
    os._exit(Terminated.exit_code)

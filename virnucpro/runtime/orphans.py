"""Processes of a launch end with the launcher that started them, however that ends."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time

from virnucpro.errors import Terminated
from virnucpro.runtime.environment import RELAUNCHED

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_CLEANUP_SECONDS = 1.0


@functools.cache
def end_with_launcher() -> None:
    """End this process within some seconds after its launcher, if it has one.

    A launcher that is killed can tell nobody. Its processes would wait for its store, some of them
    for minutes.
    """
    if RELAUNCHED in os.environ:
        # It may have ended before this process came here.
        launcher = int(os.environ[RELAUNCHED])
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun and accelerate start these processes themselves, so the parent is the launcher.
        launcher = os.getppid()
    else:
        return
    # Not PR_SET_PDEATHSIG, for which the end of the thread that started this process is enough.
    threading.Thread(target=_watch, args=(launcher,), name="orphan", daemon=True).start()


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

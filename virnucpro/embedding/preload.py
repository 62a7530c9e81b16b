"""Imported by the process from which the loader's workers are forked, and by nothing else."""

import atexit
import ctypes
import os
import signal
import sys

# From Linux's prctl.h.
_PR_SET_PDEATHSIG = 1


def _end_with_parent(number: int) -> None:
    if sys.platform == "linux":
        # Python has no function for this call of Linux; other systems go without it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


# Only while it imports, which takes seconds. Later it notices by itself that its clients are gone.
# And the kernel takes the end of the thread that started it for the end of the parent.
_end_with_parent(signal.SIGKILL)

import accelerate.data_loader  # noqa: E402, F401

_end_with_parent(0)
# Taking torch apart takes seconds, and there is nothing to clean up.
atexit.register(os._exit, 0)

"""What the environment variables say of this process's place in a launch."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

RELAUNCHED = "VIRNUCPRO_RELAUNCHED"
"""Variable in the processes that virnucpro itself started: the number of the process that did."""

_LAUNCHERS_VARIABLES = (
    "WORLD_SIZE",
    "LOCAL_RANK",
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_MIXED_PRECISION",
)


def is_launched() -> bool:
    """Return whether a launcher has started this process, alone or as one of several."""
    return any(name in os.environ for name in _LAUNCHERS_VARIABLES)


def num_processes() -> int:
    """Return how many processes the launch has; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_local_processes() -> int:
    """Return how many processes of the launch run on this machine; 1 without a launch."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the only process of the run, or the first of a launch of several."""
    return os.environ.get("RANK", "0") == "0"


def reads_settings_first() -> bool:
    """Return whether this process should comment on settings that other processes read too."""
    return is_main_process() and RELAUNCHED not in os.environ


def machine_name() -> str:
    """Return a name for this machine that is unique in a launch, even if hosts share a name."""
    return f"{platform.node()} (machine {os.environ.get('GROUP_RANK', '0')})"


@contextmanager
def off_the_working_directory() -> Iterator[None]:
    """Let processes that start meanwhile import nothing from the working directory.

    Python searches it first in `python -m` and `python -c`, and multiprocessing starts its
    processes so. It may hold a stranger's files, such as a random.py.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before

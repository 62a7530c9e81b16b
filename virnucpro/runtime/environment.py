"""What the environment variables say of this process's place in a launch."""

from __future__ import annotations

import math
import os
import platform
import runpy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from virnucpro.backend.control_groups import MEMBERSHIP, MOUNTED, list_groups
from virnucpro.errors import UsageError

RELAUNCHED = "VIRNUCPRO_RELAUNCHED"
"""Variable in the processes that virnucpro itself started: the number of the process that did."""

LISTENER = "VIRNUCPRO_LISTENER"
"""Variable in the first of these processes: the file number of the socket where all meet."""

LAUNCH_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What each process of a launch needs to know: its place, and where all meet."""

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""In these, MPI says how many processes it has started."""

# `accelerate launch` of a single process sets the last one only.
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
    return _number("WORLD_SIZE") or 1


def num_local_processes() -> int:
    """Return how many processes of the launch run on this machine; 1 without a launch."""
    return (_number("LOCAL_WORLD_SIZE") or 1) if num_processes() > 1 else 1


def num_cores() -> int:
    """Return how many cores this process may use, if those of its machine share alike."""
    return max(1, _num_allowed_cores // num_local_processes())


def _count_allowed_cores() -> int:
    num_cores = os.cpu_count() or 1
    # A job may have only some cores of its machine. macOS does not have this function.
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    # Or it may see all of them, and have the time of a few.
    quotas = read_cpu_quotas(MEMBERSHIP, MOUNTED)
    return math.ceil(min([num_cores, *quotas]))


def read_cpu_quotas(membership: Path, mounted: Path) -> Iterator[float]:
    """Yield how many cores' time Linux allows the control groups of this process, where it says so.

    `docker run --cpus` and the CPU limits of Kubernetes set this.

    Args:
        membership: The groups of this process, as `MEMBERSHIP` lists them.
        mounted: As `MOUNTED`.
    """
    for group, is_v1 in list_groups("cpu", membership, mounted):
        with suppress(OSError, ValueError):
            yield _read_quota(group, is_v1=is_v1)


def _read_quota(group: Path, *, is_v1: bool) -> float:
    """Return the cores' time of one control group; a ValueError says that it is not limited."""
    if is_v1:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((group / name).read_text() for name in names)
    else:
        quota, period = (group / "cpu.max").read_text().split()
    # Without a limit, version 1 says -1 and version 2 says `max`, which is no number.
    if int(quota) <= 0 or int(period) <= 0:
        raise ValueError(quota)
    return int(quota) / int(period)


# Counted at the start. Accelerate may tie this process to the cores near its GPU later, and then
# the processes of neighbouring GPUs share these.
_num_allowed_cores = _count_allowed_cores()


def is_main_process() -> bool:
    """Return whether this is the only process of the run, or the first of a launch of several."""
    return num_processes() == 1 or _number("RANK") == 0


def _number(name: str) -> int | None:
    """Return a whole number of at least 0, or None if the variable has none."""
    # int() would also read " 4", "+4" and digits of other scripts, which no launcher writes.
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else None


def check_launch() -> None:
    """Make sure that the variables of a launch are whole or mean nothing, before anything starts.

    Job scripts and other programs leave them behind. With half of them, a process would wait for
    others that nobody starts.

    Raises:
        UsageError: They are not whole, or they are those of MPI.
    """
    places = {name: _number(name) for name in ("RANK", "LOCAL_RANK")}
    size = _number("WORLD_SIZE")
    has_size = size is not None or not os.environ.get("WORLD_SIZE")
    if has_size and (size or 1) == 1 and not any(places.values()):
        # Each process of MPI would take itself for a run of its own, and all would write the same
        # files.
        by_mpi = [name for name in MPI_SIZES if (_number(name) or 1) > 1]
        if by_mpi:
            raise UsageError(
                f"MPI has started several processes ({_show(by_mpi)}), and virnucpro does not work "
                f"through MPI; {describe_ways_out(by_mpi)}"
            )
        return
    wrong = [name for name in LAUNCH_VARIABLES if name != "MASTER_ADDR" and _number(name) is None]
    if not os.environ.get("MASTER_ADDR"):
        wrong.append("MASTER_ADDR")
    if not wrong and max(place or 0 for place in places.values()) >= (size or 1):
        # A place beyond the size: these variables come from two different launches.
        wrong = ["RANK", "LOCAL_RANK"]
    if wrong:
        found = [name for name in LAUNCH_VARIABLES if name in os.environ]
        raise UsageError(
            f"the environment says that this is one process of several ({_show(found)}), but "
            f"{', '.join(wrong)}: missing or wrong; {describe_ways_out(found)}"
        )


def describe_ways_out(names: Iterable[str]) -> str:
    """Return how to run without the launch that variables speak of, and how to launch."""
    return (
        f"to run alone: unset {' '.join(names)}; to run in several processes: --num-processes, or "
        "accelerate launch on several machines (docs/clusters.md)"
    )


def _show(names: Iterable[str]) -> str:
    return ", ".join(f"{name}={os.environ[name][:40]}" for name in names)


def reads_settings_first() -> bool:
    """Return whether this process should comment on settings that other processes read too."""
    return is_main_process() and RELAUNCHED not in os.environ


def read_torch_build() -> dict[str, Any]:
    """Return torch's `__version__`, and its `cuda` and `hip`, or nothing if it is not installed.

    This does not import torch, which takes seconds.
    """
    found = find_spec("torch")
    if found is None or found.origin is None:
        return {}
    # torch writes this file when it is built. It imports nothing.
    path = Path(found.origin).with_name("version.py")
    return runpy.run_path(str(path)) if path.is_file() else {}


def machine_name() -> str:
    """Return a name for this machine that is unique in a launch, even if hosts share a name."""
    # Launchers number their machines. Containers often share one host name.
    return f"{platform.node()} (machine {os.environ.get('GROUP_RANK', '0')})"


def require_working_directory() -> None:
    """Refuse to work in a directory that was removed, where MKL ends the program with a riddle.

    Raises:
        UsageError: There is no working directory.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the working directory cannot be used ({error.strerror}), perhaps because it was "
            "removed; change to another one (cd)"
        ) from error


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

"""The memory of a CPU is looked at before it is taken: the system kills who takes too much."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
# Most batches need less than this. They are spared the look at the system's files.
_ALWAYS_THERE = 1 << 30


def require_memory(num_bytes: int, device: torch.device) -> None:
    """Make sure that a CPU has memory for `num_bytes` more; a GPU says so itself.

    Raises:
        torch.OutOfMemoryError: It has less. Callers handle it as they handle that of a GPU.
    """
    if device.type != "cpu" or num_bytes < _ALWAYS_THERE:
        return
    free = measure_free()
    if num_bytes > free:
        raise torch.OutOfMemoryError(f"{num_bytes:,} bytes of memory are needed, {free:,} are free")


def measure_free() -> int:
    """Return the bytes that this process can still take from the machine and from its container."""
    free = [int(psutil.virtual_memory().available)]
    # There may be no cgroups, or no limit ("max").
    with suppress(OSError, StopIteration, ValueError):
        group = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        # Inside a container the group's own path may be hidden, and the limit stands at the root.
        limits = [_CGROUP / group / "memory.max", _CGROUP / "memory.max"]
        limit = int(next(path for path in limits if path.exists()).read_text())
        free.append(limit - int(psutil.Process().memory_info().rss))
    # In a container the machine has more memory than the container may take.
    return min(free)

"""The memory of a CPU is looked at before it is taken: the system kills who takes too much."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

from virnucpro.backend.control_groups import MEMBERSHIP, MOUNTED, list_groups

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


def measure_free(membership: Path = MEMBERSHIP, mounted: Path = MOUNTED) -> int:
    """Return the bytes that this process can still take from the machine and from its container.

    Args:
        membership: The control groups of this process, as `MEMBERSHIP` lists them.
        mounted: As `MOUNTED`.
    """
    free = [int(psutil.virtual_memory().available)]
    for group, is_v1 in list_groups("memory", membership, mounted):
        # Not every group has a limit: then there is no file, or it says `max`.
        with suppress(OSError, ValueError):
            limit = int((group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).read_text())
            free.append(limit - int(psutil.Process().memory_info().rss))
    # In a container the machine has more memory than the container may take.
    return min(free)

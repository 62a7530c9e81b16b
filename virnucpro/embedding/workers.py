"""The loader's worker processes: how many, how they start, what they send, and how they end.

They need little of the machine: no shared memory but for semaphores.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from virnucpro.config import ComputeConfig
from virnucpro.errors import ProcessError, first_line
from virnucpro.runtime.environment import num_cores, num_processes
from virnucpro.runtime.forkserver import start_forkserver

logger = logging.getLogger(__name__)

_LACKS = (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


def prepare_workers(compute: ComputeConfig, device: torch.device) -> None:
    """Start the process from which the loader's workers will be forked, if there are workers.

    It never touches CUDA, which does not survive a fork; this process does, so workers cannot be
    forked from it.
    """
    if count_workers(compute, device):
        start_forkserver()


def count_workers(compute: ComputeConfig, device: torch.device, most: int | None = None) -> int:
    """Return how many worker processes tokenize for this process; 0 if it tokenizes itself.

    On a CPU, the model needs all cores. On a GPU, tokenizing must be faster than the model.

    Args:
        compute: How to compute; it may say how many.
        device: Where the model computes.
        most: No more than so many, unless the user says how many; None for as many as a pass needs.
    """
    wanted = compute.dataloader_workers
    if wanted is None and device.type == "cuda":
        if most is None:
            # Each worker of a pass claims a batch ahead. At the end of the pass, the other
            # processes wait for these batches.
            most = 8 if num_processes() == 1 else 4
        # One core is for the process itself.
        wanted = min(most, max(1, num_cores() - 1))
    return wanted if wanted and _have_semaphores(wanted) else 0


def pins_memory(compute: ComputeConfig, device: torch.device) -> bool:
    """Tell whether batches wait in pinned memory, from which a GPU copies while it computes."""
    # Without a GPU it would be a needless copy.
    return device.type == "cuda" and compute.pin_memory is not False


@functools.cache
def _have_semaphores(num_workers: int) -> bool:
    """Tell whether this machine has the semaphores for the queues of so many workers."""
    context = multiprocessing.get_context("forkserver")
    try:
        # Torch's loader has a queue and an event for each worker and some of its own.
        queues = [context.Queue() for _ in range(2 * num_workers + 2)]
    except (OSError, ImportError) as error:
        logger.warning(
            "no worker processes: shared memory (/dev/shm) is full or missing (%s), so this "
            "process tokenizes itself, which is slower on a GPU; give a container more with "
            "--shm-size, or choose --dataloader-workers 0",
            first_line(error),
        )
        return False
    for queue in queues:
        queue.close()
    return True


@contextmanager
def explaining_workers() -> Iterator[None]:
    """Explain the errors with which torch's loader says that its workers cannot work.

    Raises:
        ProcessError: They do not start, or one was killed.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # An error of ours inside a worker keeps its class, but has no number.
        is_lack = getattr(error, "errno", None) in _LACKS
        if not is_lack and not str(error).startswith("DataLoader worker"):
            raise
        raise ProcessError(
            f"the processes that tokenize do not work ({first_line(error)}), often because memory "
            "or shared memory ran out; give the machine or the container more, or choose "
            "--dataloader-workers 0"
        ) from error


def worker_settings(num_workers: int) -> dict[str, Any]:
    """Return what a DataLoader must know of its workers, or of having none."""
    if not num_workers:
        return {"collate_fn": _keep}
    return {
        "num_workers": num_workers,
        # Not a lambda, because it is pickled into the workers.
        "collate_fn": Parcel,
        # A worker ends with this process, however that ends.
        "worker_init_fn": functools.partial(_end_with_main, _lifeline()[0]),
        "multiprocessing_context": "forkserver",
    }


def _keep(content: object) -> object:
    return content


@functools.cache
def _lifeline() -> tuple[Connection, Connection]:
    # This process alone holds the end for writing, and the system closes it.
    return multiprocessing.Pipe(duplex=False)


def _end_with_main(lifeline: Connection, _number: int) -> None:
    # torch's workers watch their parent, but that is the process that forked them, which in turn
    # lives as long as they do.
    def wait() -> None:
        with suppress(EOFError, OSError):
            # Nobody ever sends: the call ends when the system closes the other end, even after a
            # SIGKILL.
            lifeline.recv_bytes()
        # Not sys.exit, which would only end this thread.
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class Parcel:
    """What crosses to another process with its tensors as arrays, and comes out as it was.

    torch would send tensors through shared memory. A container has little of that, and where it is
    full, the loader waits forever. Batches are small.
    """

    def __init__(self, content: object) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        buffer = io.BytesIO()
        _TensorPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(self._content)
        return pickle.loads, (buffer.getvalue(),)


class _TensorPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        # Arrays of numpy travel through the pipe as bytes, without shared memory.
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented

"""Batches on CPUs, computed as two halves side by side, each with half of the threads.

Threads that share every operation wait for the slower of them in each; halves wait for each other
once in a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from virnucpro.backend.interface import TokenBatch

_FEWEST_SEQUENCES = 8
"""With fewer, halves may be of too unequal size."""


def embed_halves(embed: Callable[[TokenBatch], Tensor], batch: TokenBatch) -> Tensor:
    """Return what `embed` makes of a batch on a CPU, under `torch.inference_mode()`."""
    if len(batch.rows) < _FEWEST_SEQUENCES:
        return embed(batch)
    num_threads = torch.get_num_threads()
    if num_threads % 2:
        # Cut all the same: how products round must not depend on the number of threads.
        return torch.cat(list(map(embed, batch.halve())))
    pool = _pool(num_threads // 2)
    found = list(pool.map(torch.inference_mode()(embed), batch.halve()))
    # What workers set when they begin is also what threads begin with that others make later.
    torch.set_num_threads(num_threads)
    return torch.cat(found)


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Return two workers, each of which computes in `num_threads`."""
    return ThreadPoolExecutor(2, "half", _begin, (num_threads,))


def _begin(num_threads: int) -> None:
    # torch gives a thread the process's number when it first looks, over what was set before.
    torch.get_num_threads()
    torch.set_num_threads(num_threads)

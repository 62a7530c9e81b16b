"""Batches on CPUs: the two halves of a batch are computed in parallel.

Each half gets half of the threads. When all threads share every operation, they wait for the
slowest thread in each operation. The two halves wait for each other only once in a batch.

Shapes: B sequences in a batch, E the embedding's dimension.
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

_MIN_SEQUENCES = 8
"""The halves of a smaller batch may have very different sizes."""


def embed_halves(embed: Callable[[TokenBatch], Tensor], batch: TokenBatch) -> Tensor:
    """Return the embeddings (B, E) of a batch on a CPU, computed under `torch.inference_mode()`."""
    if len(batch.rows) < _MIN_SEQUENCES:
        return embed(batch)
    num_threads = torch.get_num_threads()
    if num_threads % 2:
        # The batch is halved anyway, because rounding must not depend on the number of threads.
        return torch.cat(list(map(embed, batch.halve())))
    pool = _pool(num_threads // 2)
    # Inference mode belongs to a thread, so each worker enters it again.
    halves = list(pool.map(torch.inference_mode()(embed), batch.halve()))
    # A new worker also changed the number with which all later threads of the process begin.
    torch.set_num_threads(num_threads)
    return torch.cat(halves)


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Return two workers, each of which computes with `num_threads` threads."""

    def begin() -> None:
        # The first call in a thread overwrites its number with the process's, so it comes first.
        torch.get_num_threads()
        torch.set_num_threads(num_threads)

    # The workers stay for the whole process: a new thread would start new threads of OpenMP too.
    return ThreadPoolExecutor(2, "half", begin)

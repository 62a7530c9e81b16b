"""The loader: fetches claimed rows, tokenizes them in workers, and moves them to the device."""

from __future__ import annotations

import multiprocessing.forkserver
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from virnucpro.backend.interface import Collator, TokenBatch
from virnucpro.config import ComputeConfig
from virnucpro.runtime.environment import num_local_processes
from virnucpro.sequences.frame_store import SequenceSource

IntArray = np.ndarray[Any, np.dtype[np.int64]]


def prepare_workers(compute: ComputeConfig, device: torch.device) -> None:
    """Start the process that the loader's workers will be forked from, where it has any.

    It imports what takes long while this process opens the models, and once for all workers. It
    never touches CUDA, which does not survive a fork.
    """
    if count_workers(compute, device):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["accelerate.data_loader"])
        multiprocessing.forkserver.ensure_running()


def count_workers(compute: ComputeConfig, device: torch.device) -> int:
    """Return how many processes tokenize for this one.

    On a CPU the model needs the cores; on a GPU, tokenizing must stay ahead of it.
    """
    if compute.dataloader_workers is not None:
        return compute.dataloader_workers
    if device.type != "cuda":
        return 0
    return min(4, max(1, (os.cpu_count() or 1) // num_local_processes() - 1))


def make_loader(
    source: SequenceSource,
    collator: Collator,
    claims: Iterable[IntArray],
    compute: ComputeConfig,
    device: torch.device,
) -> DataLoader[TokenBatch]:
    """Return the prepared loader of the batches of rows that this process claims."""
    on_gpu = device.type == "cuda"
    num_workers = count_workers(compute, device)
    loader: DataLoader[TokenBatch] = DataLoader(
        _Rows(source),  # type: ignore[arg-type]
        batch_sampler=claims,  # type: ignore[arg-type]
        collate_fn=_Collate(collator),
        num_workers=num_workers,
        multiprocessing_context="forkserver" if num_workers else None,
        # One batch a worker is ahead enough, and what is claimed ahead is late at the end.
        prefetch_factor=1 if num_workers else None,
        pin_memory=on_gpu if compute.pin_memory is None else compute.pin_memory and on_gpu,
    )
    # The claims have distributed the batches: for the loader this is the only process.
    prepared: DataLoader[TokenBatch] = prepare_data_loader(
        loader,
        device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        even_batches=False,
        non_blocking=True,
    )
    return prepared


class _Rows:
    """A map-style dataset that fetches a whole batch of rows from a source at once."""

    def __init__(self, source: SequenceSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: IntArray) -> tuple[IntArray, list[str]]:
        return rows, self.source.get_many(rows)


class _Collate:
    """Turns what `_Rows` fetches into a TokenBatch; picklable, for the loader's workers."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, fetched: Any) -> TokenBatch:
        return self.collator(*fetched)

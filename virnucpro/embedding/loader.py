"""The loader: fetches claimed rows, tokenizes them in workers, and moves them to the device.

One process has one loader; its workers are processes of their own.
"""

from __future__ import annotations

import functools
import multiprocessing.forkserver
import os
from collections.abc import Iterable

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import Collator, TokenBatch
from virnucpro.config import ComputeConfig
from virnucpro.runtime.environment import num_local_processes, off_the_working_directory
from virnucpro.sequences.frame_store import SequenceSource


def prepare_workers(compute: ComputeConfig, device: torch.device) -> None:
    """Start the process from which the loader's workers will be forked, if there are workers.

    It imports the slow modules once for all workers, while this process opens the models. It never
    touches CUDA, which does not survive a fork; this process does, so workers cannot be forked from
    it.
    """
    if count_workers(compute, device):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["accelerate.data_loader"])
        with off_the_working_directory():
            multiprocessing.forkserver.ensure_running()


def count_workers(compute: ComputeConfig, device: torch.device) -> int:
    """Return how many worker processes tokenize for this process; 0 if it tokenizes itself.

    On a CPU, the model needs all cores. On a GPU, tokenizing must be faster than the model.
    """
    if compute.dataloader_workers is not None:
        return compute.dataloader_workers
    if device.type != "cuda":
        return 0
    # One core of each process's share is for the process itself.
    return min(4, max(1, (os.cpu_count() or 1) // num_local_processes() - 1))


def make_loader(
    source: SequenceSource,
    collator: Collator,
    claims: Iterable[Int64Array],
    compute: ComputeConfig,
    device: torch.device,
) -> DataLoader[TokenBatch]:
    """Return the loader of the batches that `claims` yields, on the device."""
    on_gpu = device.type == "cuda"
    num_workers = count_workers(compute, device)
    loader: DataLoader[TokenBatch] = DataLoader(
        _Rows(source),  # type: ignore[arg-type]
        batch_sampler=claims,  # type: ignore[arg-type]
        # Not a lambda, because it is pickled into the workers.
        collate_fn=functools.partial(_collate, collator),
        num_workers=num_workers,
        multiprocessing_context="forkserver" if num_workers else None,
        # Prefetch one batch per worker; claiming more would delay the end of the pass.
        prefetch_factor=1 if num_workers else None,
        pin_memory=on_gpu if compute.pin_memory is None else compute.pin_memory and on_gpu,
    )
    # The claims share out the batches. Accelerate must not share them out again, so we tell it of
    # one process only. `even_batches` would let it repeat rows.
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
    """A dataset that fetches a whole batch of rows at once: torch looks for `__getitems__`."""

    def __init__(self, source: SequenceSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: Int64Array) -> tuple[Int64Array, list[str]]:
        return rows, self.source.get_many(rows)


def _collate(collator: Collator, fetched: tuple[Int64Array, list[str]]) -> TokenBatch:
    return collator(*fetched)

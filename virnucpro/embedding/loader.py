"""The loader: fetches claimed rows, tokenizes them in workers, and moves them to the device.

One process has one loader; its workers are processes of their own (`virnucpro.embedding.workers`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import Collator, TokenBatch
from virnucpro.config import ComputeConfig
from virnucpro.embedding.workers import Parcel, begin_worker, count_workers
from virnucpro.sequences.frame_store import SequenceSource


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
        # Only batches that cross to another process need to be packed.
        collate_fn=functools.partial(_pack if num_workers else _collate, collator),
        num_workers=num_workers,
        worker_init_fn=begin_worker() if num_workers else None,
        multiprocessing_context="forkserver" if num_workers else None,
        # Prefetch one batch per worker; claiming more would delay the end of the pass.
        prefetch_factor=1 if num_workers else None,
        # Only pinned memory can be copied while the GPU computes. Without a GPU it is a needless
        # copy.
        pin_memory=on_gpu if compute.pin_memory is None else compute.pin_memory and on_gpu,
    )
    # The claims share out the batches. Accelerate must not share them out again, so we tell it of
    # one process only. `even_batches` would let it repeat rows.
    prepared: DataLoader[TokenBatch] = prepare_data_loader(
        loader,
        device,
        num_processes=1,
        process_index=0,
        # Accelerate moves named tuples to the device by itself, so `TokenBatch` is one.
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


def _pack(collator: Collator, fetched: tuple[Int64Array, list[str]]) -> Parcel:
    return Parcel(_collate(collator, fetched))

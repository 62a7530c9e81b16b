"""The loader: fetches claimed rows, tokenizes them in workers, and moves them to the device.

One process has one loader for all passes of a run; its workers are processes of their own
(`virnucpro.embedding.workers`).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import Collator, TokenBatch
from virnucpro.config import ComputeConfig
from virnucpro.embedding.workers import (
    count_workers,
    explaining_workers,
    pins_memory,
    worker_settings,
)
from virnucpro.errors import BackendError, first_line
from virnucpro.sequences.frame_store import SequenceSource

if TYPE_CHECKING:
    # The workers import this module, and need no models.
    from virnucpro.embedding.jobs import Job


class Loader:
    """Loads the batches of one pass after the other, always with the same workers.

    Args:
        jobs: All passes whose batches may be wanted; each has a name of its own.
        compute: How to compute.
        device: Where the batches go.
    """

    def __init__(self, jobs: Sequence[Job], compute: ComputeConfig, device: torch.device) -> None:
        self._jobs, self._compute, self._device = jobs, compute, device
        self.sampler = _Sampler()

    @cached_property
    def _num_workers(self) -> int:
        return count_workers(self._compute, self._device)

    @cached_property
    def _loader(self) -> DataLoader[TokenBatch]:
        """What all passes iterate over; made when the first of them has work."""
        has_workers = self._num_workers > 0
        passes = {}
        for job in self._jobs:
            collator = job.model.load_collator()
            if has_workers:
                _check_pickling(collator, job.model.name)
            passes[job.name] = job.source, collator
        loader: DataLoader[TokenBatch] = DataLoader(
            _Batches(passes),  # type: ignore[arg-type]
            batch_sampler=self.sampler,  # type: ignore[arg-type]
            # Prefetch one batch per worker; claiming more would delay the end of the pass.
            prefetch_factor=1 if has_workers else None,
            # Otherwise each pass would start its own, which takes a quarter of a second.
            persistent_workers=has_workers,
            pin_memory=pins_memory(self._compute, self._device),
            **worker_settings(self._num_workers),
        )
        # The claims share out the batches. Accelerate must not share them out again, so we tell it
        # of one process only. `even_batches` would let it repeat rows.
        prepared: DataLoader[TokenBatch] = prepare_data_loader(
            loader,
            self._device,
            num_processes=1,
            process_index=0,
            # Accelerate moves named tuples to the device by itself, so `TokenBatch` is one.
            put_on_device=True,
            even_batches=False,
            non_blocking=True,
        )
        return prepared

    def start_workers(self) -> None:
        """Let the workers start, so that they are there when the first batch is wanted."""
        if self._num_workers:
            self.sampler.claims = ()
            # Torch starts them when it is asked for a batch, even if there is none.
            with explaining_workers():
                list(self._loader)

    def load(self, job: Job, claims: Iterable[Int64Array]) -> Iterator[TokenBatch]:
        """Return the batches of the job that `claims` yields, on the device."""
        self.sampler.name, self.sampler.claims = job.name, claims
        return iter(self._loader)


def _check_pickling(collator: Collator, backend: str) -> None:
    """Make sure that workers can get a collator, which is pickled for that.

    Raises:
        BackendError: It cannot be pickled.
    """
    try:
        pickle.dumps(collator)
    # Other people's code may raise anything.
    except Exception as error:
        raise BackendError(
            f"the collator of backend {backend} cannot be pickled ({first_line(error)}), so that "
            "other processes cannot tokenize; report this to its authors, or choose "
            "--dataloader-workers 0"
        ) from error


class _Claim(NamedTuple):
    """The name of a pass, and the rows of one of its batches."""

    name: str
    rows: Int64Array


class _Sampler:
    """Passes the claims of the current pass on. It has no `batch_size`; see `ClaimedBatches`."""

    name = ""
    claims: Iterable[Int64Array] = ()

    def __iter__(self) -> Iterator[_Claim]:
        return (_Claim(self.name, rows) for rows in self.claims)


class _Batches:
    """A dataset that makes a whole batch at once: torch looks for `__getitems__`."""

    def __init__(self, passes: dict[str, tuple[SequenceSource, Collator]]) -> None:
        self._passes = passes

    def __len__(self) -> int:
        return sum(len(source) for source, _ in self._passes.values())

    def __getitems__(self, claim: _Claim) -> TokenBatch:
        source, collator = self._passes[claim.name]
        return collator(claim.rows, source.get_many(claim.rows))

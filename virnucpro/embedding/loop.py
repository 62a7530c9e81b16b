"""The loop: batches come from the loader, and their embeddings go to the parts.

Shapes: B sequences in a batch, E numbers in an embedding.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from virnucpro.backend.arrays import Float32Array
from virnucpro.backend.interface import Encoder, TokenBatch
from virnucpro.embedding.batches import Batches, ClaimedBatches
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.workers import explaining_workers
from virnucpro.embedding.writer import PartWriter
from virnucpro.errors import BackendError, brief, count
from virnucpro.runtime.devices import is_out_of_memory
from virnucpro.runtime.monitoring import PassStatus
from virnucpro.runtime.run import Run

logger = logging.getLogger(__name__)


class Loop:
    """One process's way through its batches."""

    def __init__(
        self, run: Run, job: Job, batches: Batches, claims: ClaimedBatches, status: PassStatus
    ) -> None:
        self.rank = run.rank
        self.device = run.device
        self.on_progress = run.on_progress
        self.clear_interval = run.config.cache_clear_interval
        self.job = job
        self.batches = batches
        self.claimed = claims.claimed
        self.status = status
        # The area of a batch is B times its longest length squared, because attention may need
        # memory by the square: a failure on long sequences must not shrink batches of short ones.
        self.max_area: float = math.inf
        self.on_gpu = self.device.type == "cuda"
        self.upload = torch.cuda.Stream(self.device) if self.on_gpu else None  # type: ignore[no-untyped-call]
        self.download = torch.cuda.Stream(self.device) if self.on_gpu else None  # type: ignore[no-untyped-call]

    def run(self, batches: Iterator[TokenBatch], encoder: Encoder) -> list[Path]:
        """Embed every batch that the loader yields, count it, and return the parts."""
        status = self.status
        # A second loop of the pass: there are batches that nobody claimed.
        if status.state == "waiting":
            status.state = "embedding"
        if self.on_gpu:
            # Earlier passes in the same process may have had a larger model.
            torch.cuda.reset_peak_memory_stats(self.device)
        # Leaving the writer writes what it holds: an error or Ctrl-C below loses no finished batch.
        writer = PartWriter(self.job.parts_dir, self.rank, self.job.identity, status)
        with writer:
            for batch in self._receive(batches):
                if status.state == "loading":
                    status.begin_loop()
                for piece, embeddings, began in self._embed(encoder, batch):
                    writer.put(piece.rows, self._fetcher(embeddings, began))
                # The loader gives batches in the order of their claims, so this is the oldest.
                cost = self.batches.cost(self.claimed.popleft())
                status.count_batch(len(batch.rows), len(batch.token_ids_T), cost)
                if self.on_progress is not None:
                    # A copy, because the loop goes on counting in the original.
                    self.on_progress(dataclasses.replace(status))
                interval = self.clear_interval
                if self.on_gpu and interval and status.num_batches % interval == 0:
                    torch.cuda.empty_cache()
        # After the writer has left, so the time includes the last part.
        status.end_loop()
        if self.on_gpu:
            status.peak_memory_bytes = torch.cuda.max_memory_allocated(self.device)
        return writer.parts

    def _receive(self, batches: Iterator[TokenBatch]) -> Iterator[TokenBatch]:
        """Yield batches on the device, their copies issued on a stream of their own."""
        while True:
            began = time.monotonic()
            # Accelerate copies the batch to the GPU here: beside the model, on its own stream.
            with torch.cuda.stream(self.upload), explaining_workers():
                batch = next(batches, None)
            if batch is None:
                return
            self._check_rows(batch)
            # Waiting for the first batch counts as loading.
            if self.status.state == "embedding":
                self.status.data_seconds += time.monotonic() - began
            if self.upload is not None:
                current = torch.cuda.current_stream(self.device)
                # The GPU waits for the copy. Meanwhile the CPU queues the next kernels.
                current.wait_stream(self.upload)
                for tensor in (batch.token_ids_T, batch.lengths_B):
                    # Otherwise torch's allocator would reuse this memory when `upload` is done with
                    # it, while the model still reads it.
                    tensor.record_stream(current)
            yield batch

    def _check_rows(self, batch: object) -> None:
        """Make sure that a batch is the next one, because others would be stored under its rows.

        Raises:
            BackendError: The collator returned something else.
        """
        wanted = self.batches[self.claimed[0]]
        if not isinstance(batch, TokenBatch) or not np.array_equal(batch.rows, wanted):
            found = batch.rows if isinstance(batch, TokenBatch) else batch
            raise BackendError(
                f"the collator of backend {self.job.model.name} returned {brief(found)}, and a "
                f"TokenBatch of the rows {brief(wanted)} was expected; report this to its authors"
            )

    def _embed(
        self, encoder: Encoder, batch: TokenBatch
    ) -> Iterator[tuple[TokenBatch, torch.Tensor, Any]]:
        """Yield the batch with its embeddings, in pieces where the device cannot hold it whole.

        With each piece goes the moment at which the device began to compute it.
        """
        # Halves are halved again until they fit. A single sequence ends the recursion.
        alone = len(batch.rows) == 1
        if alone or _area(batch) <= self.max_area:
            began = self._moment()
            embeddings = self._try(encoder, batch)
            if embeddings is not None:
                yield batch, embeddings, began
                return
            self._make_room(batch)
        if alone:
            # The row is counted and not dropped: its record still gets a line in the results.
            self.status.failed_rows.append(int(batch.rows[0]))
            return
        for half in batch.halve():
            yield from self._embed(encoder, half)

    def _try(self, encoder: Encoder, batch: TokenBatch) -> torch.Tensor | None:
        """Return the embeddings, or None if the memory does not suffice.

        Raises:
            BackendError: The encoder returned something else.
        """
        try:
            # On a GPU this only queues the kernels, but it takes their memory: a lack shows here.
            embeddings = encoder(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        wanted = (len(batch.rows), self.job.identity.embedding_dim)
        if embeddings.shape != wanted or embeddings.dtype != torch.float32:
            raise BackendError(
                f"backend {self.job.model.name} returned embeddings of the shape "
                f"{tuple(embeddings.shape)} in {embeddings.dtype}, and {wanted} in torch.float32 "
                "was expected; report this to its authors"
            )
        return embeddings

    def _make_room(self, batch: TokenBatch) -> None:
        """Note that a batch does not fit, so that no other of its size is tried."""
        if self.on_gpu:
            # Blocks that are cached for other shapes may be what the next try lacks.
            torch.cuda.empty_cache()
        where = (self.job.name, self.rank, self.device)
        if len(batch.rows) == 1:
            logger.warning(
                "%s: process %d on %s lacks the memory for a single sequence of %d tokens, which "
                "is left out (row %d)",
                *where,
                batch.max_length,
                batch.rows[0],
            )
            return
        # Remembered, or every following batch of this size would fail once more before it is split.
        self.max_area = _area(batch) / 2
        # So the monitor and run.json tell what this process really works with.
        self.status.budget_tokens = len(batch.rows) * batch.max_length // 2
        logger.warning(
            "%s: process %d on %s ran out of memory on %s of up to %s; it continues with batches "
            "of half the size",
            *where,
            count(len(batch.rows), "sequence"),
            count(batch.max_length, "token"),
        )

    def _moment(self) -> Any:
        """Return a moment in the device's own work, which on a GPU goes on after the call."""
        if not self.on_gpu:
            return time.monotonic()
        # An event is a time stamp that the GPU itself sets when it comes to it.
        timed = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return torch.cuda.current_stream(self.device).record_event(timed)

    def _fetcher(self, embeddings_BE: torch.Tensor, began: Any) -> Callable[[], Float32Array]:
        """Start the copy to the host and return what waits for it, to be called in the writer."""
        ended = self._moment()
        if self.download is None:
            self.status.device_seconds += ended - began
            return embeddings_BE.numpy
        # The copy must not begin before the embeddings are computed.
        self.download.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.download):
            # Only a copy into pinned memory runs beside the computation: the CPU waits for others.
            host_BE = torch.empty(embeddings_BE.shape, dtype=torch.float32, pin_memory=True)
            host_BE.copy_(embeddings_BE, non_blocking=True)
            # Keeps the allocator from giving this memory to the next batch before it is copied.
            embeddings_BE.record_stream(self.download)
            copied = self.download.record_event()

        def fetch() -> Float32Array:
            copied.synchronize()
            self.status.device_seconds += began.elapsed_time(ended) / 1000
            # Copied out, so that the pinned block serves the next batch.
            return host_BE.numpy().copy()

        return fetch


def _area(batch: TokenBatch) -> int:
    # Not tokens: attention needs memory by the square of the length (see `max_area`).
    return len(batch.rows) * batch.max_length**2

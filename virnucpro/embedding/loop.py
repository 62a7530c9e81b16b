"""The embedding loop: a loader in, checkpoint parts out.

Each process claims batches, embeds them and writes parts of its own; nothing is exchanged inside
the loop but the claims, because processes work at their own speeds.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader

from virnucpro.backend.interface import Attention, Backend, Encoder, TokenBatch, Weights
from virnucpro.checkpoints.parts import Identity, finished_parts, finished_rows
from virnucpro.config import ComputeConfig
from virnucpro.embedding.batches import (
    Batches,
    ClaimedBatches,
    IntArray,
    measure_costs,
    plan_batches,
)
from virnucpro.embedding.budgets import MOST_BATCH_TOKENS, BudgetKey, read_budget
from virnucpro.embedding.compiling import compile_layers
from virnucpro.embedding.loader import make_loader
from virnucpro.embedding.writer import FloatArray, PartWriter
from virnucpro.errors import MemoryExhaustedError
from virnucpro.runtime.claims import make_counter
from virnucpro.runtime.devices import DTYPES, count_affordable, device_name, is_out_of_memory
from virnucpro.runtime.monitoring import Monitor, PassStatus, ProgressListener
from virnucpro.sequences.frame_store import SequenceSource

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 2_048
_MEMORY_SHARE = 0.8


@dataclasses.dataclass(frozen=True)
class EmbeddingJob:
    """One backend over one source of sequences.

    Attributes:
        name: For people, for example `DNA embeddings`.
        rows: The rows of the source to embed.
        parts_dir: Where the parts go, and where finished ones are found.
        batch_tokens: Token budget of a batch; None for what the devices can hold.
    """

    name: str
    backend: Backend
    weights: Weights
    source: SequenceSource
    rows: IntArray
    parts_dir: Path
    identity: Identity
    batch_tokens: int | None


@dataclasses.dataclass(frozen=True)
class EmbeddingSummary:
    """What one process did in a pass.

    Attributes:
        num_rows: Rows that this process embedded now.
        num_tokens: Their tokens, special ones included.
        failed_rows: Rows that do not fit the device, even alone.
        budget_tokens: Of a batch, at the end.
        load_seconds: From the start of the pass to the first batch.
        loop_seconds: From the first batch to the last part on disk.
        data_seconds: Of the loop, waiting for the loader.
        device_seconds: Of the loop, the device computing.
        disk_seconds: Of the loop, writing parts; the device goes on meanwhile.
        peak_memory_bytes: Most that was allocated on the GPU; 0 on a CPU.
        compiled: Whether torch.compile compiled the encoder.
    """

    num_rows: int = 0
    num_tokens: int = 0
    failed_rows: tuple[int, ...] = ()
    budget_tokens: int = 0
    load_seconds: float = 0.0
    loop_seconds: float = 0.0
    data_seconds: float = 0.0
    device_seconds: float = 0.0
    disk_seconds: float = 0.0
    peak_memory_bytes: int = 0
    compiled: bool = False


def run_embedding(
    accelerator: Accelerator,
    job: EmbeddingJob,
    compute: ComputeConfig,
    on_progress: ProgressListener | None = None,
    monitor: Monitor | None = None,
) -> EmbeddingSummary:
    """Embed every row of the job that is in no finished part yet.

    Every process calls it; all return when all are done.

    Args:
        accelerator: Of this process.
        job: What to embed.
        compute: How.
        on_progress: Called after each batch of this process.
        monitor: Watches the pass.

    Raises:
        MemoryExhaustedError: The weights do not fit the device.
        NonFiniteEmbeddingError: The encoder returned NaN or infinity.
        UsageError: Compiling was asked for and does not work.
    """
    monitor = monitor or Monitor()
    finished = finished_rows(finished_parts(job.parts_dir))
    # All look before anyone writes a part, or they would not plan the same batches.
    accelerator.wait_for_everyone()
    summary = EmbeddingSummary()
    if len(np.setdiff1d(job.rows, finished)):
        status = PassStatus(job.name)
        monitor.begin_pass(status)
        device = accelerator.device
        costs = measure_costs(job.backend.token_cost, job.source, job.rows)
        encoder = _load_encoder(device, job, compute)
        compiled = compile_layers(
            encoder, compute.compile, num_tokens=int(costs.sum()), device=device
        )
        batches, budget = _plan(accelerator, job, compute, encoder, costs, finished)
        claims = ClaimedBatches(batches, make_counter(accelerator))
        status.total_rows, status.total_cost = len(batches.rows), int(batches.costs.sum())
        status.budget_tokens = budget
        collator = job.backend.load_collator(job.weights)
        loader = make_loader(job.source, collator, claims, compute, device)
        loop = _Loop(accelerator, job, compute, batches, claims, status, on_progress)
        with torch.inference_mode():
            summary = dataclasses.replace(loop.run(loader, encoder), compiled=compiled)
        monitor.publish()
        accelerator.wait_for_everyone()
        monitor.end_pass()
    return summary


def _load_encoder(device: torch.device, job: EmbeddingJob, compute: ComputeConfig) -> Encoder:
    try:
        return job.backend.load_encoder(
            job.weights,
            dtype=DTYPES[job.identity.precision],
            device=device,
            attention=cast("Attention", compute.attention),
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(
            f"{job.name}: the weights {job.weights.location} do not fit the memory of {device}; "
            "use a device with more, or smaller weights, and --resume"
        ) from error


def _plan(
    accelerator: Accelerator,
    job: EmbeddingJob,
    compute: ComputeConfig,
    encoder: Encoder,
    costs: IntArray,
    finished: IntArray,
) -> tuple[Batches, int]:
    """Return the batches that remain to be computed and their budget, the same in every process."""
    budget = job.batch_tokens
    if budget is None:
        # One plan for all: a larger GPU gains next to nothing from larger batches, and takes more
        # of them instead.
        mine = choose_budget(accelerator.device, job, encoder, costs, compute.attention)
        budget = min(gather_object([mine]))
    remaining = plan_batches(job.rows, costs, budget).without(finished)
    logger.info(
        "%s: %d distinct of %d sequences, %d already done, %d batches of up to %d tokens to do",
        job.name,
        len(job.rows),
        len(job.source),
        len(job.rows) - len(remaining.rows),
        len(remaining),
        budget,
    )
    return remaining, budget


def choose_budget(
    device: torch.device, job: EmbeddingJob, encoder: Encoder, costs: IntArray, attention: str
) -> int:
    """Return how many tokens a batch may have: what is fastest, as far as memory allows.

    What a token takes is measured on a small batch of the longest sequences, which take most.
    """
    identity = job.identity
    place = (device_name(device), identity.backend, identity.embedding_dim, identity.precision)
    most = read_budget(BudgetKey(*place, attention)) or MOST_BATCH_TOKENS[device.type]
    if device.type != "cuda":
        return most
    longest = max(1, int(costs.max()))
    rows = job.rows[np.argsort(-costs, kind="stable")[: max(1, _PROBE_TOKENS // longest)]]
    batch = job.backend.load_collator(job.weights)(rows, job.source.get_many(rows))
    num_affordable = count_affordable(lambda: encoder(send_to_device(batch, device)), device)
    # Where not even one fits, the loop goes on from there, one sequence at a time.
    return int(min(most, max(longest, _MEMORY_SHARE * num_affordable * len(rows) * longest)))


class _Loop:
    """One process's way through its batches."""

    def __init__(
        self,
        accelerator: Accelerator,
        job: EmbeddingJob,
        compute: ComputeConfig,
        batches: Batches,
        claims: ClaimedBatches,
        status: PassStatus,
        on_progress: ProgressListener | None,
    ) -> None:
        self.process_index = accelerator.process_index
        self.device = accelerator.device
        self.job = job
        self.clear_interval = compute.cache_clear_interval
        self.batches = batches
        self.claimed = claims.claimed
        self.status = status
        self.on_progress = on_progress
        self.failed_rows: list[int] = []
        # Of a batch, B times its longest squared: short sequences are not held to what long ones
        # take, whose attention may go by their square.
        self.most_area: float = math.inf
        self.on_gpu = self.device.type == "cuda"
        self.upload = torch.cuda.Stream(self.device) if self.on_gpu else None  # type: ignore[no-untyped-call]
        self.download = torch.cuda.Stream(self.device) if self.on_gpu else None  # type: ignore[no-untyped-call]

    def run(self, loader: DataLoader[TokenBatch], encoder: Encoder) -> EmbeddingSummary:
        status = self.status
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        writer = PartWriter(self.job.parts_dir, self.process_index, self.job.identity, status)
        with writer:
            for batch in self._receive(loader):
                if status.state == "loading":
                    status.begin_loop()
                for piece, embeddings, began in self._embed(encoder, batch):
                    writer.put(piece.rows, self._fetcher(embeddings, began))
                cost = self.batches.cost(self.claimed.popleft())
                status.count_batch(len(batch.rows), len(batch.token_ids_T), cost)
                if self.on_progress is not None:
                    self.on_progress(dataclasses.replace(status))
                interval = self.clear_interval
                if self.on_gpu and interval and status.num_batches % interval == 0:
                    torch.cuda.empty_cache()
        status.end_loop()
        return EmbeddingSummary(
            num_rows=status.num_rows - len(self.failed_rows),
            num_tokens=status.num_tokens,
            failed_rows=tuple(self.failed_rows),
            budget_tokens=status.budget_tokens,
            load_seconds=status.load_seconds,
            loop_seconds=status.loop_seconds,
            data_seconds=status.data_seconds,
            device_seconds=status.device_seconds,
            disk_seconds=status.disk_seconds,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0,
        )

    def _receive(self, loader: DataLoader[TokenBatch]) -> Iterator[TokenBatch]:
        """Yield batches on the device, their copies issued on a stream of their own."""
        batches = iter(loader)
        while True:
            began = time.monotonic()
            with torch.cuda.stream(self.upload):
                batch = next(batches, None)
            if batch is None:
                return
            if self.status.state == "embedding":  # waiting for the first is loading
                self.status.data_seconds += time.monotonic() - began
            if self.upload is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_stream(self.upload)
                for tensor in (batch.token_ids_T, batch.lengths_B):
                    tensor.record_stream(current)
            yield batch

    def _embed(
        self, encoder: Encoder, batch: TokenBatch
    ) -> Iterator[tuple[TokenBatch, torch.Tensor, Any]]:
        """Yield the batch with its embeddings, in pieces where the device cannot hold it whole.

        With each piece goes the moment at which the device began to compute it.
        """
        alone = len(batch.rows) == 1
        if alone or _area(batch) <= self.most_area:
            began = self._moment()
            embeddings = self._try(encoder, batch)
            if embeddings is not None:
                yield batch, embeddings, began
                return
            self._make_room(batch)
        if alone:
            self.failed_rows.append(int(batch.rows[0]))
            return
        for half in batch.halve():
            yield from self._embed(encoder, half)

    def _try(self, encoder: Encoder, batch: TokenBatch) -> torch.Tensor | None:
        """Return the embeddings, or None if the memory does not suffice."""
        try:
            return encoder(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _make_room(self, batch: TokenBatch) -> None:
        """Note that a batch does not fit, so that no other of its size is tried."""
        if self.on_gpu:
            torch.cuda.empty_cache()
        where = (self.job.name, self.process_index, self.device)
        if len(batch.rows) == 1:
            logger.warning(
                "%s: process %d on %s has not the memory for a single sequence of %d tokens, which "
                "is left out (row %d)",
                *where,
                batch.max_length,
                batch.rows[0],
            )
            return
        self.most_area = _area(batch) / 2
        self.status.budget_tokens = len(batch.rows) * batch.max_length // 2
        logger.warning(
            "%s: process %d on %s ran out of memory on %d sequences of up to %d tokens; it goes on "
            "with batches of half the size",
            *where,
            len(batch.rows),
            batch.max_length,
        )

    def _moment(self) -> Any:
        """Return a moment in the device's own work, which on a GPU goes on after the call."""
        if not self.on_gpu:
            return time.monotonic()
        timed = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return torch.cuda.current_stream(self.device).record_event(timed)

    def _fetcher(self, embeddings_BE: torch.Tensor, began: Any) -> Callable[[], FloatArray]:
        """Start the copy to the host and return what waits for it, to be called in the writer."""
        ended = self._moment()
        if self.download is None:
            self.status.device_seconds += ended - began
            return embeddings_BE.numpy
        self.download.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.download):
            host_BE = torch.empty(embeddings_BE.shape, dtype=torch.float32, pin_memory=True)
            host_BE.copy_(embeddings_BE, non_blocking=True)
            embeddings_BE.record_stream(self.download)
            copied = self.download.record_event()

        def fetch() -> FloatArray:
            copied.synchronize()
            self.status.device_seconds += began.elapsed_time(ended) / 1000
            # Copied out, so that the pinned block serves the next batch.
            return host_BE.numpy().copy()

        return fetch


def _area(batch: TokenBatch) -> int:
    return len(batch.rows) * batch.max_length**2

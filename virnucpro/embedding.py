"""The embedding loop: a prepared loader in, checkpoint parts out.

Accelerate owns the processes, their devices and the loader. Each process embeds the batches that
fall to it and writes parts of its own; nothing is exchanged inside the loop, because processes
have different numbers of batches.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from virnucpro.batching import (
    Batches,
    BatchSampler,
    IntArray,
    RowsDataset,
    measure_costs,
    plan_batches,
)
from virnucpro.checkpoints.parts import Identity, finished_parts, finished_rows
from virnucpro.config import ComputeConfig
from virnucpro.errors import MemoryExhaustedError, UsageError
from virnucpro.frame_store import SequenceSource
from virnucpro.interface import Attention, Backend, Collator, TokenBatch, Weights
from virnucpro.part_writer import FloatArray, PartWriter

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Throughput hardly changes from 8,000 tokens on an H200; on a CPU small batches stay in the cache.
DEFAULT_BATCH_TOKENS = {"cuda": 32_768, "cpu": 2_048}

# The processes wait for each other at the ends of a pass, which may lie hours apart; one that dies
# takes the launch down, so nobody waits for the dead.
_COLLECTIVE_TIMEOUT = timedelta(days=7)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far this process is in one pass; costs are in tokens."""

    name: str
    done: int
    total: int
    rows_done: int
    rows_total: int


ProgressListener = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class EmbeddingJob:
    """One backend over one source of sequences.

    Attributes:
        name: For people, for example `DNA embeddings`.
        rows: The rows of the source to embed.
        parts_dir: Where the parts go, and where finished ones are found.
        batch_tokens: Token budget of a batch; None for the device's default.
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
        load_seconds: From the start of the pass to the first batch.
        loop_seconds: From the first batch to the last part on disk.
        data_seconds: Of the loop, waiting for the loader.
        disk_seconds: Of the loop, waiting for the disk.
        peak_memory_bytes: Most that was allocated on the GPU; 0 on a CPU.
    """

    num_rows: int = 0
    num_tokens: int = 0
    load_seconds: float = 0.0
    loop_seconds: float = 0.0
    data_seconds: float = 0.0
    disk_seconds: float = 0.0
    peak_memory_bytes: int = 0


def make_accelerator(compute: ComputeConfig) -> Accelerator:
    """Return the Accelerator of this process on the device that the settings name.

    In a launch of several processes, which GPU each one has is Accelerate's choice.

    Raises:
        UsageError: The device is not there, or this Python process already computes on another.
    """
    device = compute.device
    if compute.expandable_segments:
        # Read when CUDA starts, so set before anything touches it.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    wanted = None if device == "auto" else torch.device(device)
    num_gpus = torch.cuda.device_count()
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) >= num_gpus:
        raise UsageError(
            f"device {device}: this machine shows {num_gpus} CUDA GPUs; "
            "choose another, or the device cpu"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if wanted is not None and wanted.index is not None and not launched:
        # Accelerate's own way of naming one device; it counts for the first Accelerator only.
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
        torch.cuda.set_device(wanted)
    accelerator = Accelerator(
        # Said even where there is no GPU: Accelerate otherwise makes each process a run of its own.
        cpu=not num_gpus if wanted is None else wanted.type == "cpu",
        dataloader_config=DataLoaderConfiguration(even_batches=False, non_blocking=True),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_COLLECTIVE_TIMEOUT)],
    )
    if wanted is not None and wanted.type != accelerator.device.type:
        raise UsageError(
            f"device {device} was asked for, but this process already computes on "
            f"{accelerator.device}; start a new process, or launch for that device"
        )
    return accelerator


def choose_precision(precision: str, accelerator: Accelerator) -> str:
    """Return `precision`, or for `auto` the best that every process's device has.

    bf16 from NVIDIA's compute capability 8.0 on, fp16 on older GPUs, fp32 on a CPU.
    """
    if precision != "auto":
        return precision
    if accelerator.device.type != "cuda":
        mine = "fp32"
    else:
        capable = torch.cuda.get_device_capability(accelerator.device) >= (8, 0)
        mine = "bf16" if capable else "fp16"
    # Embeddings of one run share one precision, or they would not be comparable.
    found = set(gather_object([mine]))
    return next(choice for choice in ("fp32", "fp16", "bf16") if choice in found)


def run_embedding(
    accelerator: Accelerator,
    job: EmbeddingJob,
    compute: ComputeConfig,
    on_progress: ProgressListener | None = None,
) -> EmbeddingSummary:
    """Embed every row of the job that is in no finished part yet.

    Every process calls it; all return when all are done.

    Raises:
        MemoryExhaustedError: A batch does not fit the device.
        NonFiniteEmbeddingError: The encoder returned NaN or infinity.
    """
    began = time.monotonic()
    batches = plan_job(job, accelerator.device.type)
    summary = EmbeddingSummary()
    if len(batches):
        loader = accelerator.prepare(make_loader(job, batches, compute, accelerator))
        encoder = job.backend.load_encoder(
            job.weights,
            dtype=DTYPES[job.identity.precision],
            device=accelerator.device,
            attention=cast("Attention", compute.attention),
        )
        share = batches.share(accelerator.process_index, accelerator.num_processes)
        loop = _Loop(accelerator, job, compute, share, on_progress)
        with _explained_memory_errors(job, accelerator.device), torch.inference_mode():
            summary = loop.run(loader, encoder, began)
    accelerator.wait_for_everyone()
    return summary


def plan_job(job: EmbeddingJob, device_type: str) -> Batches:
    """Return the batches of the job that remain to be computed, the same in every process."""
    costs = measure_costs(job.backend.token_cost, job.source, job.rows)
    budget = job.batch_tokens or DEFAULT_BATCH_TOKENS[device_type]
    planned = plan_batches(job.rows, costs, budget)
    finished = finished_rows(finished_parts(job.parts_dir))
    remaining = planned.without(finished)
    logger.info(
        "%s: %d distinct of %d sequences, %d already done, %d batches of up to %d tokens to do",
        job.name,
        len(job.rows),
        len(job.source),
        len(job.rows) - len(remaining.rows),
        len(remaining),
        budget,
    )
    return remaining


class _Collate:
    """Turns what RowsDataset returns into a TokenBatch; picklable, for the loader's workers."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, fetched: Any) -> TokenBatch:
        return self.collator(*fetched)


def make_loader(
    job: EmbeddingJob, batches: Batches, compute: ComputeConfig, accelerator: Accelerator
) -> DataLoader[TokenBatch]:
    """Return the loader of all processes' batches; `accelerator.prepare` splits it."""
    on_gpu = accelerator.device.type == "cuda"
    num_workers = compute.dataloader_workers
    if num_workers is None:
        # On a CPU the model needs the cores; on a GPU, tokenizing must stay ahead of it.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = min(4, max(1, (os.cpu_count() or 1) // local - 1)) if on_gpu else 0
    return DataLoader(
        RowsDataset(job.source),  # type: ignore[arg-type]
        batch_sampler=BatchSampler(batches),
        collate_fn=_Collate(job.backend.load_collator(job.weights)),
        num_workers=num_workers,
        # A forked worker would inherit CUDA, which does not survive it.
        multiprocessing_context="spawn" if num_workers else None,
        prefetch_factor=4 if num_workers else None,
        pin_memory=on_gpu if compute.pin_memory is None else compute.pin_memory and on_gpu,
    )


class _Loop:
    """One process's way through its batches."""

    def __init__(
        self,
        accelerator: Accelerator,
        job: EmbeddingJob,
        compute: ComputeConfig,
        share: tuple[IntArray, IntArray],
        on_progress: ProgressListener | None,
    ) -> None:
        self.accelerator = accelerator
        self.device = accelerator.device
        self.job = job
        self.compute = compute
        self.rows_done, self.cost_done = (np.cumsum(part) for part in share)
        self.on_progress = on_progress
        self.on_gpu = self.device.type == "cuda"
        self.upload = torch.cuda.Stream(self.device) if self.on_gpu else None  # type: ignore[no-untyped-call]
        self.download = torch.cuda.Stream(self.device) if self.on_gpu else None  # type: ignore[no-untyped-call]
        self.data_seconds = 0.0

    def run(self, loader: Any, encoder: Any, began: float) -> EmbeddingSummary:
        num_rows = num_tokens = 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        loop_began: float | None = None
        writer = PartWriter(self.job.parts_dir, self.accelerator.process_index, self.job.identity)
        with writer:
            for number, batch in enumerate(self._batches(loader), start=1):
                loop_began = loop_began or time.monotonic()
                writer.put(batch.rows, self._fetcher(encoder(batch)))
                num_rows += len(batch.rows)
                num_tokens += len(batch.token_ids_T)
                self._report(number)
                interval = self.compute.cache_clear_interval
                if self.on_gpu and interval and number % interval == 0:
                    torch.cuda.empty_cache()
        ended = time.monotonic()
        loop_began = loop_began or ended
        return EmbeddingSummary(
            num_rows=num_rows,
            num_tokens=num_tokens,
            load_seconds=loop_began - began,
            loop_seconds=ended - loop_began,
            data_seconds=self.data_seconds,
            disk_seconds=writer.seconds_blocked,
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0,
        )

    def _batches(self, loader: Any) -> Iterator[TokenBatch]:
        """Yield batches on the device, their copies issued on a stream of their own."""
        batches = iter(loader)
        first = True
        while True:
            began = time.monotonic()
            with torch.cuda.stream(self.upload):
                batch = next(batches, None)
            if not first:
                self.data_seconds += time.monotonic() - began
            first = False
            if batch is None:
                return
            if self.upload is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_stream(self.upload)
                for tensor in (batch.token_ids_T, batch.lengths_B):
                    tensor.record_stream(current)
            yield batch

    def _fetcher(self, embeddings_BE: torch.Tensor) -> Callable[[], FloatArray]:
        """Start the copy to the host and return what waits for it, to be called in the writer."""
        if self.download is None:
            return embeddings_BE.numpy
        self.download.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.download):
            host_BE = torch.empty(embeddings_BE.shape, dtype=torch.float32, pin_memory=True)
            host_BE.copy_(embeddings_BE, non_blocking=True)
            embeddings_BE.record_stream(self.download)
            copied = self.download.record_event()

        def fetch() -> FloatArray:
            copied.synchronize()
            # Copied out, so that the pinned block serves the next batch.
            return host_BE.numpy().copy()

        return fetch

    def _report(self, num_batches: int) -> None:
        if self.on_progress is not None:
            rows, cost = self.rows_done, self.cost_done
            here = num_batches - 1
            self.on_progress(
                Progress(
                    self.job.name, int(cost[here]), int(cost[-1]), int(rows[here]), int(rows[-1])
                )
            )


@contextmanager
def _explained_memory_errors(job: EmbeddingJob, device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        budget = job.batch_tokens or DEFAULT_BATCH_TOKENS[device.type]
        raise MemoryExhaustedError(
            f"{job.name}: {device} ran out of memory with batches of {budget} tokens "
            f"({free / 2**30:.1f} of {total / 2**30:.1f} GiB free now); finished parts are kept: "
            "give a smaller token budget and --resume"
        ) from error

"""What a pass will take: tokens, memory and time, before anything large is loaded.

The speed of a small model is measured on some of its batches. The speed of a large one comes from
`virnucpro profile`, or from how fast this device multiplies matrices.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

from virnucpro.backend.weights import find_download, find_weight_files
from virnucpro.config import PUBLISHED
from virnucpro.embedding.batches import Batches
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.measuring import measure_product
from virnucpro.embedding.models import Model
from virnucpro.errors import WeightsError
from virnucpro.runtime.run import Run
from virnucpro.sequences.frame_store import SequenceSource

logger = logging.getLogger(__name__)

# Once for both models of a run.
_measure_product = functools.cache(measure_product)

SMALL_MODEL_BYTES = 1 << 28
"""Weights up to this size are loaded for an estimate, which takes a second."""

# The share of the best product that the models reach, around which all measured ones lie
# (docs/notes/performance.md: 62 % to 89 % on an H100).
_SHARE_OF_CEILING = 0.75
_SLOW_PARAMETERS = 100_000_000
_SLOW_SECONDS = 600

_SAMPLED_BATCHES = 12
_MIN_SECONDS = 1.0
_SAMPLED_ROWS = 1_000

# Fits the memory that models of 8M to 3B parameters took beside their weights on an H100.
_ACTIVATIONS_PER_TOKEN = 14
# In fp8, the weights are there in bf16 too.
_BYTES_OF_A_WEIGHT = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 3}


@dataclass(frozen=True)
class WeightsSize:
    """How large a model is.

    Attributes:
        num_parameters: As its files tell.
        path: Where they are on this machine; None if they are to be downloaded.
        num_bytes: The bytes of the files.
    """

    num_parameters: int
    path: Path | None
    num_bytes: int = 0

    @property
    def is_small(self) -> bool:
        """Whether it is here and loaded in a moment."""
        return self.path is not None and 4 * self.num_parameters <= SMALL_MODEL_BYTES


def measure_weights(location: str) -> WeightsSize | None:
    """Return the size of the weights at `location`; None if they are neither here nor published.

    Only the sizes of files are looked at. Files of tensors are float32, but fair-esm's are float16.
    """
    local = Path(location)
    path = local if local.exists() else find_download(location)
    if path is None:
        published = (one for one in PUBLISHED.values() if one.location == location)
        model = next(published, None)
        return None if model is None else WeightsSize(model.num_bytes // 4, None)
    try:
        files = find_weight_files(path) if path.is_dir() else [path]
    except WeightsError:
        return None
    num_bytes = sum(file.stat().st_size for file in files)
    # Four bytes for a number in float32, two in float16.
    return WeightsSize(num_bytes // (2 if files[0].suffix == ".pt" else 4), path, num_bytes)


def estimate_bytes(num_parameters: int, dim: int, batch_tokens: int, precision: str) -> int:
    """Return the bytes that a model takes on its device in batches of so many tokens."""
    activation_bytes = 4 if precision == "fp32" else 2
    return num_parameters * _BYTES_OF_A_WEIGHT[precision] + (
        _ACTIVATIONS_PER_TOKEN * batch_tokens * dim * activation_bytes
    )


def has_room(model: Model, precision: str, device: torch.device, spare_bytes: float) -> bool:
    """Tell whether a model surely fits beside the one that embeds.

    Args:
        model: The model that would be loaded.
        precision: What it would compute in.
        device: Where it would be loaded.
        spare_bytes: What the other model leaves free on a GPU.
    """
    size = measure_weights(str(model.weights.path))
    if size is None or device.type != "cuda":
        # A host that runs out of memory kills the process, so only small models are worth it.
        return size is not None and size.num_bytes <= SMALL_MODEL_BYTES
    # The files may have two bytes for a number.
    needed = size.num_bytes / 2 * max(3, _BYTES_OF_A_WEIGHT[precision])
    # Half, because the first batches may fragment the memory, and others may use the GPU.
    return needed <= spare_bytes / 2


def estimate_speed(num_parameters: int, device: torch.device, precision: str) -> float:
    """Return tokens/s of a large model, from the best product of matrices on this device."""
    return _SHARE_OF_CEILING * _measure_product(device, precision) / (2 * num_parameters)


def measure_speed(
    run: Run, model: Model, source: SequenceSource, batches: Batches
) -> tuple[float, float]:
    """Load a small model, and embed batches from the whole plan; return tokens/s.

    Also return the seconds that it takes to load the model and to embed its first batch.
    """
    began = time.perf_counter()
    encoder = model.load_encoder(run.device, run.precision, run.config.attention)
    collator = model.load_collator()
    count = min(_SAMPLED_BATCHES, len(batches))
    # From the whole plan, because its first batches are long sequences and its last are short ones.
    indices = np.linspace(0, len(batches) - 1, count).astype(int).tolist()

    @torch.inference_mode()
    def embed(index: int) -> int:
        rows = batches[index]
        batch = collator(rows, source.get_many(rows))
        # `.cpu()` waits for the GPU. Without it, only the queueing would be timed.
        encoder(send_to_device(batch, run.device)).cpu()
        return batches.cost(index)

    # The first call compiles and allocates.
    embed(indices[-1])
    start_seconds = time.perf_counter() - began
    began, num_tokens, seconds = time.perf_counter(), 0, 0.0
    # Whole rounds: long and short sequences differ in speed.
    for index in itertools.chain.from_iterable(itertools.repeat(indices)):
        num_tokens += embed(index)
        seconds = time.perf_counter() - began
        if index == indices[-1] and seconds >= _MIN_SECONDS:
            break
    return num_tokens / seconds, start_seconds


def warn_of_slow_cpu(run: Run, jobs: list[Job]) -> None:
    """Say how long large models will take if there is no GPU and the user did not choose a CPU."""
    if run.config.device != "auto" or run.device.type != "cpu" or not run.is_main:
        return
    seconds = 0.0
    for job in jobs:
        size = measure_weights(job.model.weights.location)
        if size is not None and size.num_parameters >= _SLOW_PARAMETERS:
            num_tokens = _estimate_tokens(job)
            speed = estimate_speed(size.num_parameters, run.device, run.precision)
            # This process computes only its share, and the shares have about equal cost.
            num_shards = 1 if job.shard is None else job.shard[1]
            seconds += num_tokens / speed / run.num_processes / num_shards
    if seconds > _SLOW_SECONDS:
        logger.warning(
            "no GPU was found, so large models compute on the CPU, which takes about %.1f hours; "
            "use a machine with a GPU, or -m mini, which is made for a CPU",
            seconds / 3600,
        )


def _estimate_tokens(job: Job) -> int:
    """Return about how many tokens a job has, from some of its rows."""
    # Evenly over all rows, because neighbours in the input are often of equal length.
    step = max(1, len(job.rows) // _SAMPLED_ROWS)
    sample = job.rows[::step]
    costs = list(map(job.model.backend.token_cost, job.source.get_many(sample)))
    return round(sum(costs) / max(1, len(sample)) * len(job.rows))

"""Measures a device at its best, and how fast and how exact an encoder is on it.

Shapes: B sequences in a batch, E numbers in an embedding, K numbers into a linear layer.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from virnucpro.backend.interface import USUAL_LETTERS, Alphabet, Encoder, TokenBatch
from virnucpro.embedding.batches import plan_batches
from virnucpro.embedding.models import Model
from virnucpro.kernels.float8 import Float8Linear, quantize
from virnucpro.kernels.onednn import PackedLinear, can_pack
from virnucpro.runtime.devices import dtype_between

_BASES_PER_LETTER: dict[Alphabet, int] = {"dna": 1, "protein": 3}
# Whole open frames are nearly as long as their chunk. Equal lengths would need no padding at all.
_MIN_LENGTH_SHARE = 0.95

# Large enough that the device reaches its best speed.
_MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}
_CEILING_SECONDS = 0.3
_NUM_PRODUCTS = 5


@dataclass(frozen=True)
class Ceilings:
    """The best speeds of a device, measured on it.

    Attributes:
        flop_per_s: FLOP/s in a product of two large matrices, by precision.
        copy_bytes_per_s: Bytes/s, read and written, in a large copy within its memory.
    """

    flop_per_s: dict[str, float]
    copy_bytes_per_s: float

    def raise_to(self, other: Ceilings) -> Ceilings:
        """Return the better of two measurements of the same speeds."""
        return Ceilings(
            {name: max(speed, other.flop_per_s[name]) for name, speed in self.flop_per_s.items()},
            max(self.copy_bytes_per_s, other.copy_bytes_per_s),
        )


@dataclass(frozen=True)
class Speed:
    """How fast an encoder is on a batch.

    Attributes:
        tokens_per_s: Tokens a second, special tokens included.
        sequences_per_s: Sequences a second.
        peak_memory_bytes: The peak of allocated memory, weights included; None on a CPU.
    """

    tokens_per_s: float
    sequences_per_s: float
    peak_memory_bytes: int | None


@torch.inference_mode()
def measure_ceilings(device: torch.device, precisions: Iterable[str]) -> Ceilings:
    """Return the best speeds of `device` in each of `precisions`, and in copying."""
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    copy = functools.partial(torch.empty_like(source).copy_, source)
    return Ceilings(
        flop_per_s={precision: measure_product(device, precision) for precision in precisions},
        # Each byte is read once and written once.
        copy_bytes_per_s=2 * source.numel() / measure_seconds(copy, device, _CEILING_SECONDS),
    )


@torch.inference_mode()
def measure_product(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of `device` in a product of two large matrices, made in the fastest way."""
    size = _MATRIX_SIZE[device.type]
    dtype = dtype_between(precision)
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    input_XK = torch.randn(size, size, device=device, dtype=dtype)
    ways: list[Callable[[], object]] = [functools.partial(torch.mm, input_XK, layer.weight.t())]
    if precision == "fp8":
        ways = [functools.partial(Float8Linear(layer), quantize(input_XK))]
    elif can_pack(dtype, device):
        # What our models use. On some processors it is faster than the library behind torch.mm.
        ways.append(functools.partial(PackedLinear(layer.weight, None), input_XK))
    # size**2 numbers come out, each from `size` multiplications and as many additions.
    return 2 * size**3 / min(_measure_best(way, device) for way in ways)


def _measure_best(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call at its best after a warm-up."""
    if device.type == "cuda":
        # One after the other: with pauses between, a card can hold a clock that no model gets.
        return measure_seconds(call, device, _CEILING_SECONDS)
    call()
    # Other programs on the machine only slow it down, and they may do so for a moment.
    return min(_time(call, device, 1) for _ in range(_NUM_PRODUCTS))


def measure_seconds(call: Callable[[], object], device: torch.device, min_seconds: float) -> float:
    """Return the mean seconds of a call, repeated for about `min_seconds` after a warm-up."""
    # The first call compiles and allocates memory.
    call()
    once = _time(call, device, 1)
    # The floor keeps a call that the clock cannot see from asking for endless steps.
    num_steps = int(min_seconds / max(once, 1e-6))
    return _time(call, device, num_steps) if num_steps > 1 else once


def _time(call: Callable[[], object], device: torch.device, num_steps: int) -> float:
    """Return the mean seconds of `num_steps` calls; a GPU's own clock measures its calls."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(num_steps):
            call()
        return (time.perf_counter() - began) / num_steps
    stream = torch.cuda.current_stream(device)
    # The host's clock would also measure how fast Python queues the calls.
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    stream.record_event(start)
    for _ in range(num_steps):
        call()
    stream.record_event(end)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / num_steps


@torch.inference_mode()
def measure_encoder(
    encoder: Encoder, batch: TokenBatch, device: torch.device, min_seconds: float
) -> Speed:
    """Return how fast `encoder` is on `batch`, timed for about `min_seconds`.

    Raises:
        RuntimeError: torch's own error, if the memory is too small (`is_out_of_memory`).
    """
    on_gpu = device.type == "cuda"
    moved = send_to_device(batch, device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = measure_seconds(lambda: encoder(moved), device, min_seconds)
    return Speed(
        tokens_per_s=len(batch.token_ids_T) / seconds,
        sequences_per_s=len(batch.rows) / seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def make_sequences(alphabet: Alphabet, length_bp: int) -> Iterator[str]:
    """Yield random open frames of chunks of `length_bp` without end, always the same."""
    # A fixed seed, so that figures of two machines are of the same sequences.
    source = random.Random(0)
    max_length = max(1, length_bp // _BASES_PER_LETTER[alphabet])
    min_length = max(1, round(_MIN_LENGTH_SHARE * max_length))
    while True:
        length = source.randint(min_length, max_length)
        yield "".join(source.choices(USUAL_LETTERS[alphabet], k=length))


def fill_batch(model: Model, sequences: Iterable[str], batch_tokens: int) -> TokenBatch:
    """Return a batch of as many of the first `sequences` as a run's batch of that budget holds."""
    taken: list[str] = []
    max_cost = 0
    for sequence in sequences:
        max_cost = max(max_cost, model.backend.token_cost(sequence))
        # As `plan_batches` counts: the longest sequence stands for all.
        if taken and max_cost * (len(taken) + 1) > batch_tokens:
            break
        taken.append(sequence)
    return model.load_collator()(np.arange(len(taken), dtype=np.int64), taken)


@torch.inference_mode()
def embed_mixed(
    model: Model, encoder: Encoder, device: torch.device, num_sequences: int = 32
) -> Tensor:
    """Return float32 (B, E) on the host: the embeddings of random sequences, always the same.

    The sequences stand for 12 to 1,500 bp.
    """
    # From very short to very long: how a model rounds may depend on the length.
    lengths_bp = np.geomspace(12, 1500, num_sequences).astype(int).tolist()
    sequences = [next(make_sequences(model.alphabet, length_bp)) for length_bp in lengths_bp]
    costs = np.array([model.backend.token_cost(sequence) for sequence in sequences])
    # All in one batch, except those that a run in fp8 keeps apart.
    budget, apart = len(costs) * int(costs.max()), model.backend.info.min_fp8_tokens
    batches = plan_batches(np.arange(len(sequences)), costs, budget, apart)
    collator = model.load_collator()
    embeddings = [
        encoder(send_to_device(collator(rows, [sequences[row] for row in rows]), device)).cpu()
        for rows in map(batches.__getitem__, range(len(batches)))
    ]
    return torch.cat(embeddings)[np.argsort(batches.rows)]


def find_min_cosine(found_BE: Tensor, wanted_BE: Tensor) -> float:
    """Return the smallest cosine between two embeddings of a sequence; NaN counts as -1."""
    # In double, because cosines of 0.9999999 are told from 1 only there.
    cosine_B = cosine_similarity(found_BE.double(), wanted_BE.double())
    # Every comparison with NaN is false, so a caller could take it for a good value.
    return float(cosine_B.nan_to_num(nan=-1.0).min())


def count_flop_per_token(encoder: Encoder) -> int:
    """Return the floating-point operations of each token in products with weights.

    Each matrix of weights counts as one product, except tables of embeddings. Attention is not
    included, because its operations depend on the length of the sequence.
    """
    modules = cast("nn.Module", encoder).modules()
    weights = [
        getattr(module, "weight", None)
        for module in modules
        if not isinstance(module, nn.Embedding)
    ]
    return 2 * sum(w.numel() for w in weights if isinstance(w, Tensor) and w.ndim == 2)

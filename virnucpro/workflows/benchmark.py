"""The table of `virnucpro benchmark`: models on one device, beside other implementations.

Shapes: B sequences in a batch, E numbers in an embedding.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from virnucpro.backend.interface import (
    Attention,
    Backend,
    Encoder,
    MeasurableBackend,
    Reference,
    Weights,
)
from virnucpro.backend.registry import describe_backends, load_backend
from virnucpro.embedding.budgets import MOST_BATCH_TOKENS
from virnucpro.embedding.measuring import (
    Ceilings,
    count_flop_per_token,
    embed_mixed,
    fill_batch,
    find_worst_cosine,
    make_sequences,
    measure_ceilings,
    measure_encoder,
)
from virnucpro.errors import UsageError
from virnucpro.runtime.devices import DTYPES, choose_precision, is_out_of_memory

logger = logging.getLogger(__name__)

LENGTHS_BP = (500, 150)
"""Our encoders are timed on open frames of both; other implementations on the first."""

LEAST_COSINES = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.99, "fp8": 0.97}
"""What is required of our embeddings, against the same weights in float32."""

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: For people, for example `esm2 3B`.
        backend: Its backend.
        weights: Its weights.
    """

    name: str
    backend: Backend
    weights: Weights

    def load_encoder(self, device: torch.device, *, precision: str, attention: str) -> Encoder:
        """Return our encoder on `device`."""
        return self.backend.load_encoder(
            self.weights,
            dtype=DTYPES[precision],
            device=device,
            attention=cast("Attention", attention),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure of each model, and on what.

    Attributes:
        device: Where.
        precisions: Of our encoder; a backend that knows no fp8 computes in bf16 instead.
        attention: Of our encoder.
        least_seconds: How long each line is timed, about.
        with_speeds: Whether to time.
        with_cosines: Whether to compare with float32.
        with_references: Whether to measure other implementations too.
    """

    device: torch.device
    precisions: tuple[str, ...]
    attention: str
    least_seconds: float
    with_speeds: bool
    with_cosines: bool
    with_references: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table; None is what was not measured.

    Attributes:
        model: The subject's name.
        implementation: `virnucpro` with its attention, or the other's name.
        is_ours: Whether it is virnucpro.
        precision: What it computes in.
        length_bp: Of the chunks whose open frames were timed.
        batch_tokens: Of the batch that was timed.
        tokens_per_s: Special tokens included.
        sequences_per_s: Open frames.
        ceiling_share: Of what the device reaches in one large matrix product of that precision.
        peak_memory_bytes: Allocated on the GPU, weights included.
        worst_cosine: Of 32 embeddings, against the same weights in float32, eager attention.
        note: Why something is missing.
    """

    model: str
    implementation: str
    is_ours: bool
    precision: str
    length_bp: int | None = None
    batch_tokens: int | None = None
    tokens_per_s: float | None = None
    sequences_per_s: float | None = None
    ceiling_share: float | None = None
    peak_memory_bytes: int | None = None
    worst_cosine: float | None = None
    note: str = ""

    @property
    def is_off(self) -> bool:
        """Whether it is ours and further from float32 than is required."""
        least = LEAST_COSINES[self.precision]
        return self.is_ours and self.worst_cosine is not None and self.worst_cosine < least


def open_subjects(
    name: str | None, location: str | None, directory: Path, *, on_gpu: bool
) -> list[Subject]:
    """Return the models to measure: the user's weights, or random ones of telling sizes.

    Args:
        name: A backend; None for all that bring random weights.
        location: The user's weights for it; None for random ones.
        directory: Where random weights are written.
        on_gpu: Whether sizes should tell something on a GPU, or be quick on a CPU.

    Raises:
        BackendError: There is no such backend, or it is broken.
        UsageError: It brings no random weights, and the user gave none.
        WeightsError: The user's weights cannot be used.
    """
    if name is not None and location is not None:
        backend = load_backend(name).backend
        return [Subject(f"{name} {Path(location).name}", backend, backend.open_weights(location))]
    working = [listing.name for listing in describe_backends() if listing.info is not None]
    subjects = []
    for backend_name in working if name is None else [name]:
        backend = load_backend(backend_name).backend
        if isinstance(backend, MeasurableBackend):
            for size in backend.benchmark_sizes(on_gpu=on_gpu):
                own_directory = directory / f"{backend_name}-{size}"
                own_directory.mkdir()
                path = backend.write_random_weights(own_directory, size)
                weights = backend.open_weights(str(path))
                subjects.append(Subject(f"{backend_name} {size}", backend, weights))
        elif name is not None:
            raise UsageError(f"backend {name}: brings no random weights; give some with --weights")
    return subjects


def choose_precisions(precision: str, accelerator: Accelerator) -> tuple[str, ...]:
    """Return `precision` alone, or for `auto` all that this device is good for.

    Raises:
        UsageError: `precision` is not to be had on it.
    """
    chosen = choose_precision(precision, accelerator)
    if precision == "auto":
        with suppress(UsageError):
            return chosen, choose_precision("fp8", accelerator)
    return (chosen,)


def measure_table(subjects: Sequence[Subject], plan: Plan) -> tuple[Ceilings | None, list[Line]]:
    """Return what the device does at best, if speeds are wanted, and a line for each measurement.

    Raises:
        UsageError: An attention that is not to be had on the device.
    """
    benches = [_Bench(subject, plan) for subject in subjects]
    ceilings = None
    if plan.with_speeds:
        contestants = [each for bench in benches for each in (*bench.ours, *bench.others)]
        precisions = sorted({contestant.precision for contestant in contestants})
        ceilings = measure_ceilings(plan.device, precisions)
    return ceilings, [line for bench in benches for line in bench.run(ceilings)]


class _Bench:
    """Where the implementations of one model are measured, one after the other."""

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self.subject = subject
        self.plan = plan
        self.collator = subject.backend.load_collator(subject.weights)
        self.ours = [self._make_ours(precision) for precision in self._list_precisions()]
        self.flop_per_token = 0
        self.others: Sequence[Reference] = ()
        if plan.with_references and isinstance(subject.backend, MeasurableBackend):
            on_gpu = plan.device.type == "cuda"
            self.others = subject.backend.list_references(subject.weights, on_gpu=on_gpu)

    def _list_precisions(self) -> list[str]:
        knows_fp8 = self.subject.backend.info.supports_fp8
        return list(
            dict.fromkeys(p if p != "fp8" or knows_fp8 else "bf16" for p in self.plan.precisions)
        )

    def _make_ours(self, precision: str) -> Reference:
        attention = self.plan.attention
        load = functools.partial(
            self.subject.load_encoder, precision=precision, attention=attention
        )
        return Reference(f"virnucpro, {attention}", precision, None, load)

    def run(self, ceilings: Ceilings | None) -> Iterator[Line]:
        """Yield the lines of this model; without speeds where there are no `ceilings`.

        Raises:
            UsageError: An attention that is not to be had on the device.
        """
        wanted_BE = self._embed_float32() if self.plan.with_cosines else None
        for contestant in (*self.ours, *self.others):
            line = Line(
                model=self.subject.name,
                implementation=contestant.name,
                is_ours=contestant in self.ours,
                precision=contestant.precision,
            )
            logger.info("measuring %s: %s, %s", line.model, line.implementation, line.precision)
            try:
                yield from self._measure(contestant, line, wanted_BE, ceilings)
            except UsageError as error:
                if line.is_ours:
                    raise
                yield replace(line, note=str(error))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                yield replace(line, note=OUT_OF_MEMORY)
            torch.cuda.empty_cache()

    def _measure(
        self,
        contestant: Reference,
        line: Line,
        wanted_BE: Tensor | None,
        ceilings: Ceilings | None,
    ) -> Iterator[Line]:
        """Yield what belongs to one implementation: `line`, filled in for each length."""
        plan, backend = self.plan, self.subject.backend
        encoder = contestant.load(plan.device)
        # Of the first, which is ours: the others may carry heads that nobody needs.
        self.flop_per_token = self.flop_per_token or count_flop_per_token(encoder)
        if wanted_BE is not None:
            cosine = find_worst_cosine(self._embed(encoder), wanted_BE)
            line = replace(line, worst_cosine=cosine)
        if ceilings is None:
            yield line
            return
        budget_tokens = contestant.batch_tokens or MOST_BATCH_TOKENS[plan.device.type]
        for length_bp in LENGTHS_BP if line.is_ours else LENGTHS_BP[:1]:
            sequences = make_sequences(backend.info.alphabet, length_bp)
            batch = fill_batch(backend, self.collator, sequences, budget_tokens)
            speed = measure_encoder(encoder, batch, plan.device, plan.least_seconds)
            flop_per_s = speed.tokens_per_s * self.flop_per_token
            yield replace(
                line,
                length_bp=length_bp,
                batch_tokens=len(batch.token_ids_T),
                tokens_per_s=speed.tokens_per_s,
                sequences_per_s=speed.sequences_per_s,
                ceiling_share=flop_per_s / ceilings.flop_per_s[line.precision],
                peak_memory_bytes=speed.peak_memory_bytes,
            )

    def _embed(self, encoder: Encoder) -> Tensor:
        return embed_mixed(encoder, self.subject.backend, self.collator, self.plan.device)

    def _embed_float32(self) -> Tensor | None:
        device = self.plan.device
        try:
            return self._embed(
                self.subject.load_encoder(device, precision="fp32", attention="eager")
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning(
                "%s: not compared with float32, which does not fit the memory of %s",
                self.subject.name,
                device,
            )
            return None
        finally:
            torch.cuda.empty_cache()

"""`virnucpro benchmark`: how fast and how exact the models are on one device.

Shapes: B sequences in a batch, E numbers in an embedding.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from virnucpro import __version__
from virnucpro.backend.interface import Encoder, Weights
from virnucpro.backend.registry import describe_backends
from virnucpro.config import BenchmarkConfig, ComputeConfig
from virnucpro.embedding.budgets import default_batch_tokens
from virnucpro.embedding.compiling import compile_layers
from virnucpro.embedding.measuring import (
    Ceilings,
    count_flop_per_token,
    embed_mixed,
    fill_batch,
    find_min_cosine,
    make_sequences,
    measure_ceilings,
    measure_encoder,
)
from virnucpro.embedding.models import Model, open_model
from virnucpro.errors import UsageError
from virnucpro.runtime.devices import device_name, is_out_of_memory, supports_fp8
from virnucpro.runtime.run import Run, open_run

logger = logging.getLogger(__name__)

GROUP = "virnucpro.benchmarks"
"""The group of entry points under which a package registers its `Benchmarks`."""

LENGTHS_BP = (500, 150)
"""Our encoders are timed on open frames of both lengths, other implementations on the first."""

SECONDS_PER_LINE = {"tiny": 0.1, "small": 1.0, "medium": 3.0, "large": 10.0}

_NUM_COMPARED, _NUM_COMPARED_QUICKLY = 32, 8

MIN_COSINES = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.99, "fp8": 0.99}
"""The cosine that our embeddings must reach, against the same weights in float32."""


class Implementation(NamedTuple):
    """One way to compute a model's embeddings.

    Attributes:
        name: What the table calls it, for example `fair-esm`.
        precision: What it computes in: `fp32`, `bf16`, `fp16` or `fp8`.
        batch_tokens: The tokens in its batches; None for the device's default.
        load: Returns it as an encoder on a device. Raises UsageError if a package is missing.
        is_ours: Whether it is virnucpro.
    """

    name: str
    precision: str
    batch_tokens: int | None
    load: Callable[[torch.device], Encoder]
    is_ours: bool = False


class Benchmarks(Protocol):
    """What a package may offer, so that its backend is measured without the user's weights.

    It is a module or an object, registered under `GROUP` with the name of the backend.
    """

    GPU_SIZES: tuple[str, ...]
    CPU_SIZES: tuple[str, ...]
    """The sizes of the model that are worth measuring on a GPU, or on a CPU in a minute."""

    def write_random_weights(self, directory: Path, size: str) -> Path:
        """Write random weights of one size to an empty directory, and return their location."""
        ...

    def list_references(
        self, weights: Weights, *, on_gpu: bool
    ) -> Sequence[tuple[str, str, int | None, Callable[[torch.device], Encoder]]]:
        """Return the first four fields of an Implementation for each way that is not ours."""
        ...


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table; None is what was not measured.

    Attributes:
        model: The backend and its weights, for example `esm2 3B`.
        implementation: `virnucpro` with its attention, or the name of another implementation.
        is_ours: Whether it is virnucpro.
        precision: What it computes in.
        length_bp: The length of the chunks whose open frames were timed.
        batch_tokens: The tokens of the timed batch.
        tokens_per_s: Tokens a second, special tokens included.
        sequences_per_s: Open frames a second.
        flop_per_token: The operations of a token in products with weights.
        ceiling_share: The share of the speed that one large matrix product of this precision has.
        peak_memory_bytes: The GPU memory that was allocated, weights included.
        worst_cosine: The smallest cosine of 32 embeddings and the same in float32, eager attention.
        note: Why something is missing.
        is_off: Whether it is ours and its cosine is below `MIN_COSINES`.
    """

    model: str
    implementation: str
    is_ours: bool
    precision: str
    length_bp: int | None = None
    batch_tokens: int | None = None
    tokens_per_s: float | None = None
    sequences_per_s: float | None = None
    flop_per_token: int | None = None
    ceiling_share: float | None = None
    peak_memory_bytes: int | None = None
    worst_cosine: float | None = None
    note: str = ""
    is_off: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, and where. The ceilings are None if nothing was timed."""

    virnucpro: str
    torch: str
    device: str
    num_threads: int
    ceilings: Ceilings | None
    lines: list[Line]


def run_benchmark(config: BenchmarkConfig, compute: ComputeConfig) -> Report:
    """Measure what `config` names, on the device and in the way that `compute` names.

    Raises:
        BackendError: The backend is not installed, or it is broken.
        UsageError: A setting is not available on the device, or the weights are not given.
        WeightsError: The user's weights cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="virnucpro-") as scratch, open_run(compute) as run:
        # --quick measures the small models of a CPU, on whatever device.
        on_gpu = run.device.type == "cuda" and not config.quick
        models = open_models(config.backend, config.weights, Path(scratch), on_gpu=on_gpu)
        # All of them are opened before the first is measured, so a missing file shows at once.
        subjects = [
            (label, model, _list_implementations(run, config, model)) for label, model in models
        ]
        precisions = sorted({each.precision for *_, found in subjects for each in found})
        is_timed = config.suite != "equivalence"
        # On this very device and now: a card's limit of power may differ from the data sheet.
        ceilings = measure_ceilings(run.device, precisions) if is_timed else None
        lines = [
            line for subject in subjects for line in _measure_model(run, config, is_timed, *subject)
        ]
        if ceilings is not None:
            # Once more: other programs may have slowed down the first measurement alone.
            ceilings = ceilings.raise_to(measure_ceilings(run.device, precisions))
            lines = [_compare_with_ceiling(line, ceilings) for line in lines]
        return Report(
            virnucpro=__version__,
            torch=torch.__version__,
            device=device_name(run.device),
            num_threads=torch.get_num_threads(),
            ceilings=ceilings,
            lines=lines,
        )


def _compare_with_ceiling(line: Line, ceilings: Ceilings) -> Line:
    if line.tokens_per_s is None or line.flop_per_token is None:
        return line
    flop_per_s = line.tokens_per_s * line.flop_per_token
    return replace(line, ceiling_share=flop_per_s / ceilings.flop_per_s[line.precision])


def open_models(
    backend: str | None, location: str | None, scratch: Path, *, on_gpu: bool
) -> Iterator[tuple[str, Model]]:
    """Yield each model to measure with its label: the user's weights, or random ones in `scratch`.

    Raises:
        BackendError: The backend is not installed, or it is broken.
        UsageError: There are no random weights, and the user gave none.
        WeightsError: The user's weights cannot be used.
    """
    if backend is not None and location is not None:
        yield f"{backend} {Path(location).name}", open_model(backend, location)
        return
    # A broken backend is left out: it must not end the measurement of the others.
    installed = [listing.name for listing in describe_backends() if listing.info is not None]
    found = {name: load_benchmarks(name) for name in ([backend] if backend else installed)}
    if not any(found.values()):
        which = f"backend {backend}" if backend else "the installed backends"
        raise UsageError(f"{which}: there are no random weights; give some with --weights")
    for name, benchmarks in found.items():
        if benchmarks is None:
            continue
        for size in benchmarks.GPU_SIZES if on_gpu else benchmarks.CPU_SIZES:
            directory = scratch / f"{name}-{size}"
            directory.mkdir()
            path = benchmarks.write_random_weights(directory, size)
            yield f"{name} {size}", open_model(name, str(path))


def load_benchmarks(backend: str) -> Benchmarks | None:
    """Return the `Benchmarks` that a package registers for a backend, or None."""
    for entry in entry_points(group=GROUP, name=backend):
        return cast("Benchmarks", entry.load())
    return None


def _list_implementations(run: Run, config: BenchmarkConfig, model: Model) -> list[Implementation]:
    """Return our encoder in each precision, and the other implementations."""
    precisions = [run.precision]
    if config.precision == "auto" and supports_fp8(run.device):
        # A run never chooses fp8 by itself, so here people see what it would gain and cost.
        precisions.append("fp8")
    name = f"virnucpro, {config.attention}" + (", compile on" if config.compile == "on" else "")

    def load(precision: str, device: torch.device) -> Encoder:
        encoder = model.load_encoder(device, precision, config.attention)
        # `auto` weighs the tokens of a pass, and there is no pass here.
        compile_layers(encoder, config.compile, num_tokens=0, device=device)
        return encoder

    found = [
        Implementation(name, precision, None, functools.partial(load, precision), is_ours=True)
        # A backend without fp8 computes in bf16 instead, which must not be measured twice.
        for precision in dict.fromkeys(map(model.compute_precision, precisions))
    ]
    benchmarks = load_benchmarks(model.name) if config.vanilla_baseline else None
    if benchmarks is not None:
        on_gpu = run.device.type == "cuda"
        references = benchmarks.list_references(model.weights, on_gpu=on_gpu)
        found += [Implementation(*reference) for reference in references]
    return found


def _measure_model(
    run: Run,
    config: BenchmarkConfig,
    is_timed: bool,
    label: str,
    model: Model,
    implementations: list[Implementation],
) -> Iterator[Line]:
    """Yield the lines of one model, one implementation after the other."""
    num_compared = _NUM_COMPARED_QUICKLY if config.quick else _NUM_COMPARED
    wanted_BE = None
    if config.suite in ("all", "equivalence"):
        wanted_BE = _embed_in_float32(run, label, model, num_compared)
    flop_per_token = 0
    encoder: Encoder | None = None
    for each in implementations:
        line = Line(
            model=label, implementation=each.name, is_ours=each.is_ours, precision=each.precision
        )
        logger.info("measuring %s: %s, %s", label, each.name, each.precision)
        try:
            encoder = each.load(run.device)
            # Our encoder comes first. Others may carry heads that the embeddings do not need.
            flop_per_token = flop_per_token or count_flop_per_token(encoder)
            if wanted_BE is not None:
                found_BE = embed_mixed(model, encoder, run.device, num_compared)
                cosine = find_min_cosine(found_BE, wanted_BE)
                is_off = each.is_ours and cosine < MIN_COSINES[each.precision]
                line = replace(line, worst_cosine=cosine, is_off=is_off)
            line = replace(line, flop_per_token=flop_per_token)
            if is_timed:
                yield from _time(run, config, model, each, encoder, line)
            else:
                yield line
        except UsageError as error:
            # Of others, a package may be missing. Of ours, it is the user's setting that is wrong.
            if each.is_ours:
                raise
            yield replace(line, note=str(error))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield replace(line, note="out of memory")
        # Freed before the next one is loaded: two large models may not fit together.
        encoder = None
        torch.cuda.empty_cache()


def _time(
    run: Run,
    config: BenchmarkConfig,
    model: Model,
    implementation: Implementation,
    encoder: Encoder,
    line: Line,
) -> Iterator[Line]:
    """Yield `line` with the speeds on each length."""
    min_seconds = SECONDS_PER_LINE["tiny" if config.quick else config.data_size]
    # Others are measured as they are used: fair-esm with the original's 2,048 tokens.
    budget = implementation.batch_tokens or default_batch_tokens(
        run.device.type, implementation.precision
    )
    for length_bp in LENGTHS_BP if line.is_ours else LENGTHS_BP[:1]:
        sequences = make_sequences(model.alphabet, length_bp)
        batch = fill_batch(model, sequences, budget)
        speed = measure_encoder(encoder, batch, run.device, min_seconds)
        yield replace(
            line, length_bp=length_bp, batch_tokens=len(batch.token_ids_T), **asdict(speed)
        )


def _embed_in_float32(run: Run, label: str, model: Model, num_sequences: int) -> Tensor | None:
    """Return the wanted embeddings, or None if float32 does not fit the memory."""
    try:
        encoder = model.load_encoder(run.device, "fp32", "eager")
        return embed_mixed(model, encoder, run.device, num_sequences)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning(
            "%s: not compared with float32, which does not fit the memory of %s", label, run.device
        )
        return None
    finally:
        # After an error as well: what is left would count as memory of the next model.
        torch.cuda.empty_cache()

"""`predict --dry-run`: what a run would take. It reads the input, and writes nothing that stays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from virnucpro.backend.interface import Alphabet
from virnucpro.backend.registry import load_backend
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import check_output_dir
from virnucpro.config import PredictConfig
from virnucpro.config.published import find_weights
from virnucpro.config.shared import DNA_DIM, PROTEIN_DIM
from virnucpro.embedding.batches import measure_costs, plan_batches, unique_rows
from virnucpro.embedding.budgets import BudgetKey, default_batch_tokens, read_budget, read_speed
from virnucpro.embedding.estimates import (
    estimate_bytes,
    estimate_speed,
    measure_speed,
    measure_weights,
)
from virnucpro.embedding.models import open_model
from virnucpro.errors import WeightsError
from virnucpro.runtime.devices import describe_computing, device_name
from virnucpro.runtime.run import Run, open_run, refuse_own_inputs
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.frame_scores import open_classifier
from virnucpro.sequences.frame_store import FrameStore, build_frame_store
from virnucpro.sequences.records import NAME_OF_ROW
from virnucpro.workflows.finding import settings_of_store
from virnucpro.workflows.screening import open_screen

# Python with torch and all that a run imports, without weights.
_PROCESS_BYTES = 700 << 20
_TABLE_BYTES_PER_ROW = 250
# Measured: reading the weights of a model for their digest, and scoring 49,837 frames.
_DIGEST_BYTES_PER_S = 1e9
_SCORE_SECONDS_PER_ROW = 4e-5
_END_SECONDS = 0.5

H100_TOKENS_PER_S: Mapping[tuple[str, int], float] = {
    ("dnabert-s", DNA_DIM): 2_021_900,
    ("esm2", PROTEIN_DIM): 108_830,
}
"""Measured in bf16 on one H100: docs/notes/performance.md."""

H100 = "H100 or H200"
CARDS: Mapping[str, int] = {
    H100: 989,
    "L40S": 362,
    "A100": 312,
    "RTX 4090": 165,
    "A10": 125,
    "L4": 121,
}
"""The bf16 TFLOP/s of cards, for dense matrices, as NVIDIA publishes them."""


@dataclass(frozen=True)
class PassEstimate:
    """What one model will take.

    Attributes:
        name: The backend.
        num_distinct: Sequences to embed, each once.
        num_tokens: Tokens in them.
        tokens_per_s: Of one process.
        speed_source: Where this speed comes from.
        device_bytes: On the device of each process, weights included.
        disk_bytes: Of the embeddings.
        seconds: With all processes.
        h100_seconds: On one H100 in bf16; None if that was not measured.
    """

    name: str
    num_distinct: int
    num_tokens: int
    tokens_per_s: float
    speed_source: str
    device_bytes: int
    disk_bytes: int
    seconds: float
    h100_seconds: float | None


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take.

    Attributes:
        computing: The device, the precision and the attention.
        name_of_row: What a row is called.
        num_records: Records of the input.
        num_chunks: Their chunks.
        num_rows: Open frames or stretches.
        passes: The DNA model and the protein model.
        num_processes: Processes of the run.
        host_bytes: Memory of all processes on this machine.
        disk_bytes: What the output directory will hold.
        seconds: From start to end.
        card_seconds: For the models alone on one card of each kind: measured on an H100, and scaled
            by what `CARDS` says of the others. Empty if that was not measured.
    """

    computing: str
    name_of_row: str
    num_records: int
    num_chunks: int
    num_rows: int
    passes: list[PassEstimate]
    num_processes: int
    host_bytes: int
    disk_bytes: int
    seconds: float
    card_seconds: dict[str, float]


def estimate_run(config: PredictConfig, num_processes: int = 1) -> RunEstimate:
    """Return what `predict` would take with these settings on this machine.

    Args:
        config: The settings.
        num_processes: How many processes the run would have.

    Raises:
        VirnucproError: Every error that would end the run before its passes.
    """
    _check_output(config)
    # Without the run's directory: a dry run leaves nothing in it.
    with open_run(config) as run, TemporaryDirectory(prefix="virnucpro-") as directory:
        classifier = open_classifier(config)
        if config.screen is not None:
            open_screen(config, classifier)
        store = build_frame_store(
            config.inputs, Path(directory) / "frames", settings_of_store(config, classifier.rule)
        )
        # So far the run would have done the same, imports included.
        seconds = time.time() - psutil.Process().create_time()
        passes = [
            _estimate_pass(run, config, store, alphabet, classifier, num_processes)
            for alphabet in ("dna", "protein")
        ]
        seconds += sum(one.seconds for one in passes)
        seconds += _SCORE_SECONDS_PER_ROW * store.num_rows + _END_SECONDS
        store_bytes = sum(file.stat().st_size for file in Path(directory).rglob("*"))
        on_cpu = run.device.type == "cpu"
        # On a CPU the weights are in the memory of the machine; on a GPU they are on the device.
        # The largest and not the sum, because one model is loaded after the other.
        host_bytes = _PROCESS_BYTES + on_cpu * max(one.device_bytes for one in passes)
        return RunEstimate(
            computing=describe_computing(run.device, run.precision, config.attention),
            name_of_row=NAME_OF_ROW[classifier.rule.kind],
            num_records=len(store.record_lengths),
            num_chunks=store.num_chunks,
            num_rows=store.num_rows,
            passes=passes,
            num_processes=num_processes,
            host_bytes=num_processes * host_bytes,
            disk_bytes=store_bytes
            + sum(one.disk_bytes for one in passes)
            + _TABLE_BYTES_PER_ROW * store.num_rows,
            seconds=seconds,
            card_seconds=_scale_to_cards(passes),
        )


def _check_output(config: PredictConfig) -> None:
    """Refuse an output that the run could not make.

    Results that are there already are no mistake: whether to keep them is decided with the run.
    """
    directory = RunDirectory(config.resolved_output_dir, config.stem, config.prefix)
    directory.place_checkpoints(config.checkpoint_dir, dry_run=True)
    refuse_own_inputs(directory, config.inputs)
    check_output_dir(directory.path)
    # Finished checkpoints may have become an archive, which only can be read.
    if not config.resume:
        check_output_dir(config.checkpoint_dir or directory.checkpoints_dir)


def _scale_to_cards(passes: list[PassEstimate]) -> dict[str, float]:
    seconds = [one.h100_seconds for one in passes if one.h100_seconds is not None]
    if len(seconds) < len(passes):
        return {}
    return {card: sum(seconds) * CARDS[H100] / of_card for card, of_card in CARDS.items()}


def _estimate_pass(
    run: Run,
    config: PredictConfig,
    store: FrameStore,
    alphabet: Alphabet,
    classifier: Classifier,
    num_processes: int,
) -> PassEstimate:
    is_dna = alphabet == "dna"
    name = config.dna_backend if is_dna else config.protein_backend
    location = find_weights(config.dna_weights if is_dna else config.protein_weights, name)
    size = measure_weights(location)
    if size is None:
        raise WeightsError(
            f"{location}: is not on this machine, so its size is not known; give a local path"
        )
    loaded = load_backend(name)
    dim = _find_dim(classifier, is_dna=is_dna)
    precision = loaded.compute_precision(run.precision)
    one_dna = is_dna and classifier.reads_chunks
    source = store.chunk_dna() if one_dna else store.sequences(alphabet)
    rows = unique_rows(source)
    costs = measure_costs(loaded.backend, source, rows)
    key = BudgetKey(device_name(run.device), name, dim, precision, config.attention)
    given = config.dna_batch_tokens if is_dna else config.protein_batch_tokens
    budget = given or read_budget(key) or default_batch_tokens(run.device.type, precision)
    num_tokens = int(costs.sum())
    speed, speed_source = read_speed(key), "virnucpro profile"
    start_seconds = 4 * size.num_parameters / _DIGEST_BYTES_PER_S
    # Small models only, as the help says: a large one would have to be read for this.
    if speed is None and size.is_small and len(rows):
        batches = plan_batches(rows, costs, budget)
        speed, start_seconds = measure_speed(run, open_model(name, location), source, batches)
        speed_source = "measured on some batches"
    elif speed is None:
        speed = estimate_speed(size.num_parameters, run.device, precision)
        speed_source = "from the size of the model"
    on_h100 = H100_TOKENS_PER_S.get((name, dim))
    return PassEstimate(
        name=name,
        num_distinct=len(rows),
        num_tokens=num_tokens,
        tokens_per_s=speed,
        speed_source=speed_source,
        device_bytes=estimate_bytes(size.num_parameters, dim, budget, precision),
        # float32 numbers, and an int64 for each row.
        disk_bytes=len(rows) * (4 * dim + 8),
        seconds=num_tokens / speed / num_processes + start_seconds,
        h100_seconds=None if on_h100 is None else num_tokens / on_h100,
    )


def _find_dim(classifier: Classifier, *, is_dna: bool) -> int:
    """Return the numbers in an embedding, as the classifier says."""
    metadata = classifier.metadata
    # Of a published classifier, the dimensions are known.
    if metadata is None:
        return DNA_DIM if is_dna else PROTEIN_DIM
    return metadata.dna_dim if is_dna else metadata.protein_dim

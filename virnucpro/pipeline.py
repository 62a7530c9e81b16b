"""The whole story of `predict`, from sequences to tables."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from virnucpro.adoption import adopt_legacy_run
from virnucpro.batching import unique_rows
from virnucpro.checkpoints.layout import RunLayout
from virnucpro.checkpoints.parts import EmbeddingReader, finished_parts
from virnucpro.classifier import Classifier, load_classifier
from virnucpro.config import STDIN, PredictConfig
from virnucpro.devices import choose_precision, make_accelerator
from virnucpro.embedding import EmbeddingJob, EmbeddingSummary
from virnucpro.errors import CheckpointError, OutputExistsError, UsageError
from virnucpro.frame_store import FrameStore, build_frame_store, open_frame_store
from virnucpro.interface import Alphabet
from virnucpro.loading import prepare_workers
from virnucpro.logs import log_to_file
from virnucpro.monitoring import Monitor, ProgressListener
from virnucpro.results import (
    write_fasta,
    write_highest_scores,
    write_prediction_results,
    write_records,
    write_run_json,
)
from virnucpro.scoring import RecordCalls, call_chunks, call_records
from virnucpro.session import (
    Clock,
    Model,
    check_shared_directory,
    ending_together,
    locked,
    open_model,
    open_monitor,
    run_job,
)
from virnucpro.weights import digest_files

logger = logging.getLogger(__name__)

RUN_SCHEMA_VERSION = 1
"""Of run.json, which docs/results.md describes."""

_ROWS_AT_ONCE = 16_384
_NAMES_AT_ONCE = 65_536
_INTERMEDIATE_WIDTH = 60


@dataclass(frozen=True)
class PredictResult:
    """What a run found and where it wrote it.

    Attributes:
        layout: The paths of every file of the run.
        num_records: Input records; `num_virus`, `num_others` and `num_none` add up to it.
        num_frames: Open frames.
        num_unscored_frames: Those that a device had not the memory for.
        seconds: Wall time of the whole run.
    """

    layout: RunLayout
    num_records: int
    num_virus: int
    num_others: int
    num_none: int
    num_frames: int
    num_unscored_frames: int
    seconds: float

    @property
    def output_dir(self) -> Path:
        """The run directory."""
        return self.layout.output_dir


def predict(config: PredictConfig, on_progress: ProgressListener | None = None) -> PredictResult:
    """Call every input record viral or not and write the tables.

    In a launch of several processes each of them calls this, and the main one writes.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process.

    Returns:
        Counts and paths, the same in every process.

    Raises:
        VirnucproError: Whatever goes wrong that a user can mend; see `virnucpro.errors`.
    """
    clock = Clock()
    layout = RunLayout(config.resolved_output_dir, config.stem)
    accelerator = make_accelerator(config)
    with (
        ending_together(accelerator),
        _claim_run(layout, config, accelerator),
        open_monitor(accelerator, layout.metrics_path) as monitor,
    ):
        with clock.time("open models"):
            prepare_workers(config, accelerator.device)
            precision = choose_precision(config.precision, accelerator)
            models = _open_models(config, accelerator)
            classifier = _open_classifier(config, models)
        with clock.time("find open frames"):
            if accelerator.is_main_process:
                _prepare_frames(layout, config)
            accelerator.wait_for_everyone()
            store = open_frame_store(layout.frame_store_dir)
        jobs = [_make_frame_job(layout, config, store, model, precision) for model in models]
        if config.resume and accelerator.is_main_process:
            with clock.time("take over an older run"):
                alphabets = [model.alphabet for model in models]
                identities = [job.identity for job in jobs]
                adopt_legacy_run(layout, store, dict(zip(alphabets, identities, strict=True)))
        for job in jobs:
            with clock.time(job.name):
                clock.passes[job.name] = run_job(
                    job,
                    config,
                    accelerator,
                    on_progress,
                    monitor=monitor,
                    trust_parts=config.skip_checkpoint_validation,
                )
        result = None
        if accelerator.is_main_process:
            with clock.time("scores and tables"):
                failed = [_failed_rows(clock.passes[job.name]) for job in jobs]
                frame_scores = _score_frames(store, jobs, failed, classifier)
                calls = _write_tables(layout, config, store, frame_scores)
            result = _summarize(layout, store, calls, frame_scores, clock)
            run = _describe_run(
                config, accelerator, store, models, classifier, precision, result, clock
            )
            run["passes"] = _describe_passes(clock, monitor)
            write_run_json(layout.run_json, run)
        shared: list[PredictResult] = broadcast_object_list([result])
    return shared[0]


@contextmanager
def _claim_run(
    layout: RunLayout, config: PredictConfig, accelerator: Accelerator
) -> Iterator[None]:
    """Hold the run directory, cleared if that was asked for, and log into it."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        check_shared_directory(accelerator, layout.output_dir)
        yield
        return
    directory = layout.output_dir
    own = [name for name in config.inputs if name != STDIN and layout.owns(Path(name))]
    if own:
        raise UsageError(
            f"{own[0]}: is a result that this run would replace; choose another output directory "
            "(-o), or copy it"
        )
    if layout.is_used() and not (config.force or config.resume):
        raise OutputExistsError(
            f"{directory}: exists already; continue that run with --resume, overwrite it with "
            "--force, or choose another output directory (-o)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with locked(layout.lock_path):
        if not config.resume:
            layout.clear()
        with log_to_file(layout.run_log):
            accelerator.wait_for_everyone()
            check_shared_directory(accelerator, layout.output_dir)
            yield


def _open_models(config: PredictConfig, accelerator: Accelerator) -> list[Model]:
    """Return the DNA model and the protein model."""
    models = [
        open_model(accelerator, config.dna_backend, config.dna_weights),
        open_model(accelerator, config.protein_backend, config.protein_weights),
    ]
    for model, alphabet in zip(models, ("dna", "protein"), strict=True):
        if model.alphabet != alphabet:
            raise UsageError(
                f"backend {model.loaded.name} reads {model.alphabet}, {alphabet} was wanted; "
                "`virnucpro backends` lists what each one reads"
            )
    return models


def _open_classifier(config: PredictConfig, models: Sequence[Model]) -> Classifier:
    classifier = load_classifier(config.resolved_model_path)
    dna, protein = ((model.loaded.name, model.weights.embedding_dim) for model in models)
    classifier.check_fits(dna, protein, config.chunk_length_bp)
    return classifier


def _prepare_frames(layout: RunLayout, config: PredictConfig) -> None:
    """Build the frame store, unless a resumed run finds that of the same input in place."""
    if _is_built(layout, config):
        logger.info("the open frames of the earlier run are used again")
        return
    store = build_frame_store(
        config.inputs,
        layout.frame_store_dir,
        chunk_length_bp=config.chunk_length_bp,
        min_length_bp=config.min_length,
    )
    if store.num_duplicate_ids:
        logger.warning(
            "%d ids belong to several records, which are kept apart in every table: %s",
            store.num_duplicate_ids,
            ", ".join(store.duplicate_ids(limit=5)),
        )


def _is_built(layout: RunLayout, config: PredictConfig) -> bool:
    try:
        store = open_frame_store(layout.frame_store_dir)
    except CheckpointError:
        return False
    wanted = (config.chunk_length_bp, config.min_length)
    if (store.chunk_length_bp, store.min_length_bp) != wanted:
        return False
    paths = [Path(name) for name in config.inputs]
    if STDIN in config.inputs or not all(path.is_file() for path in paths):
        return False
    return [f"sha256:{file['sha256']}" for file in store.inputs] == [
        digest_files([path]) for path in paths
    ]


def _make_frame_job(
    layout: RunLayout, config: PredictConfig, store: FrameStore, model: Model, precision: str
) -> EmbeddingJob:
    alphabet = model.alphabet
    source = store.sequences(alphabet)
    # Leaving records out moves the rows of those after them.
    rows = f"{store.input_digest} from {config.min_length} bp on"
    return EmbeddingJob(
        name="DNA embeddings" if alphabet == "dna" else "protein embeddings",
        backend=model.loaded.backend,
        weights=model.weights,
        source=source,
        rows=unique_rows(source),
        parts_dir=layout.parts_dir(alphabet),
        identity=model.make_identity(rows, precision, config.chunk_length_bp),
        batch_tokens=config.dnabert_batch_size if alphabet == "dna" else config.esm_batch_size,
    )


def _failed_rows(summaries: Sequence[EmbeddingSummary]) -> list[int]:
    return [row for summary in summaries for row in summary.failed_rows]


def _score_frames(
    store: FrameStore,
    jobs: Sequence[EmbeddingJob],
    failed: Sequence[list[int]],
    classifier: Classifier,
) -> npt.NDArray[np.float32]:
    """Return float32 (F, 2): P(others) and P(virus) of every open frame, in row order.

    Frames that a device had not the memory for, in one pass or the other, have NaN.
    """
    readers = [EmbeddingReader(finished_parts(job.parts_dir)) for job in jobs]
    scores = np.full((store.num_frames, 2), np.nan, dtype=np.float32)
    for start in range(0, store.num_frames, _ROWS_AT_ONCE):
        block = slice(start, min(start + _ROWS_AT_ONCE, store.num_frames))
        rows = [job.source.representatives[block] for job in jobs]
        is_there = ~np.logical_or(*map(np.isin, rows, failed))
        features = [
            reader.gather(wanted[is_there]) for reader, wanted in zip(readers, rows, strict=True)
        ]
        scores[block][is_there] = classifier.score(np.concatenate(features, axis=1))
    return scores


def _write_tables(
    layout: RunLayout,
    config: PredictConfig,
    store: FrameStore,
    frame_scores: npt.NDArray[np.float32],
) -> RecordCalls:
    layout.merged_dir.mkdir(exist_ok=True)
    is_scored = ~np.isnan(frame_scores[:, 0])
    frame_ids = compress(_in_blocks(store.frame_ids, store.num_frames), is_scored)
    write_prediction_results(layout.prediction_results, frame_ids, frame_scores[is_scored])
    chunks = call_chunks(frame_scores, store.chunk_first_frame)
    write_highest_scores(
        layout.highest_scores,
        _in_blocks(store.chunk_ids, store.num_chunks),
        is_open=chunks.is_open,
        is_virus=chunks.is_virus,
        max_others=chunks.max_others,
        max_virus=chunks.max_virus,
    )
    records = call_records(
        chunks, store.record_first_chunk, store.record_lengths, config.min_length, config.threshold
    )
    write_records(
        layout.records_tsv,
        _in_blocks(store.record_ids, store.num_records),
        length=store.record_lengths,
        **records._asdict(),
    )
    viral = np.flatnonzero(records.call == "virus")
    write_fasta(layout.viral_fasta, (store.record(index) for index in viral.tolist()))
    if config.keep_intermediate:
        _write_intermediate(layout, config, store)
    return records


def _write_intermediate(layout: RunLayout, config: PredictConfig, store: FrameStore) -> None:
    """Write the fork's intermediate FASTA files, wrapped where it wrapped them."""
    chunks = zip(
        _in_blocks(store.chunk_ids, store.num_chunks),
        _in_blocks(store.chunk_sequences, store.num_chunks),
        strict=True,
    )
    write_fasta(layout.chunked_fasta(store.chunk_length_bp), chunks, _INTERMEDIATE_WIDTH)
    files: list[tuple[Alphabet, Path, Callable[[int], Path]]] = [
        ("dna", layout.nucleotide_fasta, layout.split_nucleotide_fasta),
        ("protein", layout.protein_fasta, layout.split_protein_fasta),
    ]
    for kind, path, make_split_path in files:
        write_fasta(path, _name_sequences(store, kind, 0, store.num_frames), width=None)
        make_split_path(1).parent.mkdir(exist_ok=True)
        starts = range(0, store.num_frames, config.sequences_per_file)
        for number, start in enumerate(starts, start=1):
            stop = min(start + config.sequences_per_file, store.num_frames)
            frames = _name_sequences(store, kind, start, stop)
            write_fasta(make_split_path(number), frames, _INTERMEDIATE_WIDTH)


def _name_sequences(
    store: FrameStore, kind: Alphabet, start: int, stop: int
) -> Iterator[tuple[str, str]]:
    source = store.sequences(kind)
    for first in range(start, stop, _NAMES_AT_ONCE):
        last = min(first + _NAMES_AT_ONCE, stop)
        sequences = source.get_many(np.arange(first, last))
        yield from zip(store.frame_ids(first, last), sequences, strict=True)


def _in_blocks(read: Callable[[int, int], list[str]], total: int) -> Iterator[str]:
    for start in range(0, total, _NAMES_AT_ONCE):
        yield from read(start, min(start + _NAMES_AT_ONCE, total))


def _summarize(
    layout: RunLayout,
    store: FrameStore,
    calls: RecordCalls,
    frame_scores: npt.NDArray[np.float32],
    clock: Clock,
) -> PredictResult:
    words, counts = np.unique(calls.call, return_counts=True)
    num = dict(zip(words.tolist(), counts.tolist(), strict=True))
    return PredictResult(
        layout=layout,
        num_records=store.num_records,
        num_virus=num.get("virus", 0),
        num_others=num.get("others", 0),
        num_none=num.get("none", 0),
        num_frames=store.num_frames,
        num_unscored_frames=int(np.isnan(frame_scores[:, 0]).sum()),
        seconds=clock.seconds,
    )


def _describe_run(
    config: PredictConfig,
    accelerator: Accelerator,
    store: FrameStore,
    models: Sequence[Model],
    classifier: Classifier,
    precision: str,
    result: PredictResult,
    clock: Clock,
) -> dict[str, Any]:
    """Return the document that run.json holds."""
    packages = ("virnucpro", "accelerate", "h5py", "numpy", "torch")
    return {
        "schema_version": RUN_SCHEMA_VERSION,
        "started_at": clock.started_at.isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "settings": config.settings(),
        "inputs": store.inputs,
        "backends": [model.describe() for model in models],
        "precision": precision,
        "classifier": {
            "path": str(config.resolved_model_path),
            "identity": classifier.identity,
        },
        "num_processes": accelerator.num_processes,
        "counts": {
            "records": result.num_records,
            "duplicate_ids": store.num_duplicate_ids,
            "chunks": store.num_chunks,
            "frames": result.num_frames,
            "unscored_frames": result.num_unscored_frames,
            "virus": result.num_virus,
            "others": result.num_others,
            "none": result.num_none,
        },
        "seconds": clock.stages | {"total": result.seconds},
    }


def _describe_passes(clock: Clock, monitor: Monitor) -> dict[str, list[dict[str, Any]]]:
    """Return what each process says that it did in each pass, and what was seen of it."""
    seen = monitor.summary()
    return {
        name: [
            dataclasses.asdict(summary) | seen.get(name, {}).get(rank, {})
            for rank, summary in enumerate(summaries)
        ]
        for name, summaries in clock.passes.items()
    }

"""What a precision changes: a sample of the input embedded and scored in it and in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from virnucpro.backend.arrays import BoolArray, split_rows
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import CheckPrecisionConfig, FrameRule, PredictConfig
from virnucpro.embedding.jobs import make_frame_jobs
from virnucpro.embedding.models import open_frame_models
from virnucpro.embedding.passes import Pass, run_pass
from virnucpro.errors import InputError, UsageError, name_few
from virnucpro.reports.tables import write_fasta
from virnucpro.runtime.devices import device_name
from virnucpro.runtime.run import open_run
from virnucpro.scoring.calls import call_chunks, score_chunks
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.decisions import decide_calls
from virnucpro.scoring.frame_scores import (
    Scores,
    check_models,
    open_classifier,
    score_passes,
    score_records,
)
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store
from virnucpro.sequences.sampling import sample_records

REFERENCE = "fp32"

MIN_COSINE = 0.99
"""Embeddings further from float32 than this are a reason to choose another precision."""

_MAX_NAMED_FLIPS = 10


@dataclass(frozen=True)
class EmbeddingDifference:
    """How far the embeddings of one backend are from those in float32.

    Attributes:
        backend: Its name.
        precision: What it computed in: bf16 in a check of fp8, where it knows no fp8.
        num_sequences: Distinct sequences compared.
        min_cosine: The smallest cosine of an embedding and its reference.
        median_cosine: The median of all.
        largest_deviation: Of any number in an embedding, relative to the largest in its reference.
    """

    backend: str
    precision: str
    num_sequences: int
    min_cosine: float
    median_cosine: float
    largest_deviation: float


@dataclass(frozen=True)
class Flip:
    """A call that would change.

    Attributes:
        id: Of the frame, chunk or record.
        reference_score: In float32.
        score: In the checked precision.
    """

    id: str
    reference_score: float
    score: float


@dataclass(frozen=True)
class ScoreDifference:
    """How far the scores of frames, chunks or records are from those in float32.

    Attributes:
        level: `frames`, `chunks` or `records`.
        num_scored: Those that have a score.
        largest: The largest difference of two scores.
        median: The median difference.
        num_flips: How many would be called otherwise.
        flips: The first of those, in input order.
    """

    level: str
    num_scored: int
    largest: float
    median: float
    num_flips: int
    flips: list[Flip]


@dataclass(frozen=True)
class PrecisionCheck:
    """What a check has found.

    Attributes:
        precision: What was checked.
        device: The name of the GPU, or `cpu`.
        num_records: In the sample.
        num_input_records: In the whole input.
        seed: Of the sample.
        embeddings: Of the DNA backend and of the protein backend.
        scores: Of frames, chunks and records; without frames if the classifier scores chunks.
    """

    precision: str
    device: str
    num_records: int
    num_input_records: int
    seed: int
    embeddings: list[EmbeddingDifference]
    scores: list[ScoreDifference]


def check_precision(config: CheckPrecisionConfig) -> PrecisionCheck:
    """Embed and score a sample of records in float32 and in `config.precision`, and compare.

    Args:
        config: The sample, and what `predict` would do. The output directory is an empty one, for
            work in progress.

    Raises:
        VirnucproError: Whatever goes wrong that a user can mend; see `virnucpro.errors`.
    """
    work = RunDirectory(config.resolved_output_dir, config.stem)
    with open_run(config, work) as run:
        device = device_name(run.device)
        if run.precision == REFERENCE:
            raise UsageError(
                f"precision {config.precision} means {REFERENCE} on {device}, and other "
                f"precisions are compared with {REFERENCE}; give another, such as --precision bf16"
            )
        with run.stage("open models"):
            classifier = open_classifier(config)
            run.once(lambda: check_beginnings(config.inputs, "dna"))
            models = open_frame_models(run, config, classifier.changes)
            check_models(config, classifier, models)
        with run.stage("draw records"):
            store, num_input_records = _draw_records(config, classifier.rule)

        def embed(settings: PredictConfig, precision: str) -> list[Pass]:
            # A directory for each precision: parts of two precisions must never be mixed.
            own = RunDirectory(work.path / precision, work.stem)
            jobs = make_frame_jobs(
                *(settings, own, store, models, precision), reads_chunks=classifier.reads_chunks
            )
            return [
                run_pass(run, replace(job, name=f"{job.name} in {job.identity.precision}"))
                for job in jobs
            ]

        # The reference runs as `predict --precision fp32` would: flash-attn has no float32.
        reference = embed(replace(config, attention="auto"), REFERENCE)
        checked = embed(config, run.precision)
    return PrecisionCheck(
        precision=run.precision,
        device=device,
        num_records=store.num_records,
        num_input_records=num_input_records,
        seed=config.seed,
        embeddings=list(map(_compare_embeddings, reference, checked)),
        scores=_compare_scores(
            config,
            store,
            classifier,
            score_passes(store, reference, classifier),
            score_passes(store, checked, classifier),
        ),
    )


class _Calls(NamedTuple):
    """The viral scores of all frames, chunks or records, and which are called viral."""

    scores: npt.NDArray[Any]
    is_viral: BoolArray


def _draw_records(config: CheckPrecisionConfig, rule: FrameRule) -> tuple[FrameStore, int]:
    """Return the rows of the sample, and the number of records in the whole input."""
    directory = config.resolved_output_dir
    records, num_input_records = sample_records(config.inputs, config.num_records, config.seed)
    # Through a file, so that the sample is read and cut exactly as `predict` reads its input.
    path = directory / "sample.fasta"
    write_fasta(path, records)
    store = build_frame_store(
        [str(path)],
        directory / "frames",
        StoreSettings(config.chunk_length_bp, config.min_length_bp, rule),
    )
    if not store.num_rows:
        wanted = "an open frame" if rule.kind == "open" else "a stretch"
        raise InputError(
            f"{name_few(config.inputs)}: none of the {len(records)} records drawn has {wanted}, "
            "so there is nothing to compare; draw more (--num-records)"
        )
    return store, num_input_records


def _compare_embeddings(reference: Pass, checked: Pass) -> EmbeddingDifference:
    rows = np.setdiff1d(checked.job.rows, [*reference.failed_rows, *checked.failed_rows])
    cosines, deviations = np.empty(len(rows)), np.empty(len(rows))
    for block in split_rows(0, len(rows)):
        wanted_NE, found_NE = (
            # In float64, or rounding here would count as a difference of the models.
            each.gather(rows[block]).astype(np.float64)
            for each in (reference, checked)
        )
        norms_N = np.linalg.norm(wanted_NE, axis=1) * np.linalg.norm(found_NE, axis=1)
        cosines[block] = (wanted_NE * found_NE).sum(axis=1) / norms_N
        deviations[block] = np.abs(found_NE - wanted_NE).max(axis=1) / np.abs(wanted_NE).max(axis=1)
    return EmbeddingDifference(
        backend=checked.job.identity.backend,
        precision=checked.job.identity.precision,
        num_sequences=len(rows),
        min_cosine=float(cosines.min()),
        median_cosine=float(np.median(cosines)),
        largest_deviation=float(deviations.max()),
    )


def _compare_scores(
    config: PredictConfig,
    store: FrameStore,
    classifier: Classifier,
    reference: Scores,
    checked: Scores,
) -> list[ScoreDifference]:
    """Return the differences of frames, if they have scores, of chunks and of records."""
    wanted, found = (
        _call(config, store, classifier, scores)
        for scores in _keep_common(store, reference, checked)
    )
    names = {"frames": store.frame_ids, "chunks": store.chunk_ids, "records": store.record_ids}
    return [_compare_level(level, names[level], wanted[level], found[level]) for level in wanted]


def _keep_common(store: FrameStore, reference: Scores, checked: Scores) -> Iterator[Scores]:
    """Yield the scores of what has a score in both, of the reference first."""
    # A frame that only one of the two could embed would look like a changed call.
    for scores, others in ((reference, checked), (checked, reference)):
        if scores.frames is None or others.frames is None:
            is_open = scores.chunks.is_open & others.chunks.is_open
            yield Scores(scores.chunks._replace(is_open=is_open), None)
        else:
            frames = np.where(np.isnan(others.frames), np.float32(np.nan), scores.frames)
            yield Scores(call_chunks(frames, store.chunk_first_frame), frames)


def _call(
    config: PredictConfig, store: FrameStore, classifier: Classifier, scores: Scores
) -> dict[str, _Calls]:
    """Return by level what `predict` says of frames, of chunks and of records."""
    chunks = scores.chunks
    records = score_records(config, store, chunks, classifier)
    calls = {}
    if scores.frames is not None:
        # At a tie a frame is `others`, and a chunk is viral: the fork's two tables have it so.
        is_virus = scores.frames[:, 1] > scores.frames[:, 0]
        calls["frames"] = _Calls(scores.frames[:, 1], is_virus)
    decided = decide_calls(records, config, classifier.calibration, classifier.threshold).records
    chunk_scores = np.where(chunks.is_open, score_chunks(chunks), np.nan)
    return calls | {
        "chunks": _Calls(chunk_scores, chunks.is_virus),
        "records": _Calls(records.score, decided.call == "virus"),
    }


def _compare_level(
    level: str, read_ids: Callable[[int, int], list[str]], reference: _Calls, checked: _Calls
) -> ScoreDifference:
    differences = np.abs(checked.scores - reference.scores)
    # NaN stands where neither precision has a score.
    differences = differences[~np.isnan(differences)]
    flipped = np.flatnonzero(reference.is_viral != checked.is_viral).tolist()
    return ScoreDifference(
        level=level,
        num_scored=len(differences),
        largest=float(differences.max()),
        median=float(np.median(differences)),
        num_flips=len(flipped),
        flips=[
            Flip(read_ids(i, i + 1)[0], float(reference.scores[i]), float(checked.scores[i]))
            for i in flipped[:_MAX_NAMED_FLIPS]
        ],
    )

"""What a run of `predict` leaves: its tables, and run.json with what was run and found."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from itertools import compress
from typing import Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import split_rows
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import write_json
from virnucpro.config import PredictConfig
from virnucpro.reports.record_results import PredictResult, describe_calls, write_decision
from virnucpro.reports.run_json import RUN_SCHEMA_VERSION
from virnucpro.reports.tables import (
    in_blocks,
    write_fasta,
    write_highest_scores,
    write_prediction_results,
)
from virnucpro.runtime.run import Run
from virnucpro.scoring.calls import score_chunks
from virnucpro.scoring.decisions import Decision
from virnucpro.scoring.frame_scores import Embedded, Scores, decide_records
from virnucpro.scoring.regions import ChunkEvidence
from virnucpro.sequences.frame_store import FrameStore

_INTERMEDIATE_WIDTH = 60


class Calls(NamedTuple):
    """The calls of a run.

    Attributes:
        decision: The call of each record, and the rule.
        counts: The counts of run.json that the scores and the calls decide.
    """

    decision: Decision
    counts: dict[str, int]


def write_tables(
    directory: RunDirectory, config: PredictConfig, embedded: Embedded, scores: Scores
) -> Calls:
    """Write the tables of frames, chunks, records and regions, and return the calls.

    If the classifier scores chunks as a whole, the table of frames has a line for each scored
    chunk instead.

    Args:
        directory: Where the files go.
        config: The run's settings.
        embedded: The frames or stretches, and the classifier. The classifier's calibration and
            threshold decide calls.
        scores: What the classifier says of them.

    Raises:
        VirnucproError: A file cannot be written.
    """
    classifier, store, _, screened = embedded
    directory.merged_dir.mkdir(exist_ok=True)
    chunks = scores.chunks
    if scores.frames is None:
        # Such a classifier scores no single frame, and a table of frames has nothing else to list.
        names = compress(in_blocks(store.chunk_ids, store.num_chunks), chunks.is_open)
        listed = np.stack([chunks.max_others, chunks.max_virus], axis=1)[chunks.is_open]
    else:
        is_scored = ~np.isnan(scores.frames[:, 0])
        names = compress(in_blocks(store.frame_ids, store.num_rows), is_scored)
        listed = scores.frames[is_scored]
    write_prediction_results(directory.prediction_results, names, listed)
    chunk_ids = in_blocks(store.chunk_ids, store.num_chunks)
    write_highest_scores(directory.highest_scores, chunk_ids, chunks)
    decision = decide_records(config, store, chunks, classifier, screened)
    evidence = ChunkEvidence(
        score_chunks(chunks),
        classifier.calibration,
        classifier.region_model,
        by_logit=scores.frames is None,
    )
    counts = write_decision(directory, store, decision, config, evidence)
    if config.keep_intermediate:
        _write_intermediate(directory, config, store)
    return Calls(decision, {"unscored_frames": int(chunks.num_unscored.sum())} | counts)


def write_summary(
    run: Run, directory: RunDirectory, config: PredictConfig, embedded: Embedded, calls: Calls
) -> PredictResult:
    """Write run.json, and return the run's counts and paths.

    Raises:
        VirnucproError: The file cannot be written.
    """
    document = _describe_run(run, config, embedded)
    document["counts"] |= calls.counts
    write_json(directory.run_json, document | describe_calls(embedded.store, calls.decision))
    return PredictResult.of(directory, document["counts"], document["seconds"]["total"])


def write_shard_summary(
    run: Run, directory: RunDirectory, config: PredictConfig, embedded: Embedded
) -> None:
    """Write the run.json of a run that embedded one share of the batches and called nothing.

    Raises:
        OutputError: The file cannot be written.
    """
    document = _describe_run(run, config, embedded)
    write_json(directory.run_json, document | {"shard": config.shard})


def _write_intermediate(directory: RunDirectory, config: PredictConfig, store: FrameStore) -> None:
    """Write the fork's intermediate FASTA files, wrapped where it wrapped them."""
    chunks = zip(
        in_blocks(store.chunk_ids, store.num_chunks),
        in_blocks(store.chunk_sequences, store.num_chunks),
        strict=True,
    )
    write_fasta(directory.chunked_fasta(store.chunk_length_bp), chunks, _INTERMEDIATE_WIDTH)
    # The fork has both kinds twice: whole, without line breaks, and split into files.
    for kind in ALPHABETS:
        frames = _name_sequences(store, kind, 0, store.num_rows)
        write_fasta(directory.frames_fasta(kind), frames, width=None)
        directory.split_dir(kind).mkdir(exist_ok=True)
        starts = range(0, store.num_rows, config.sequences_per_file)
        for number, start in enumerate(starts, start=1):
            stop = min(start + config.sequences_per_file, store.num_rows)
            frames = _name_sequences(store, kind, start, stop)
            write_fasta(directory.split_fasta(kind, number), frames, _INTERMEDIATE_WIDTH)


def _name_sequences(
    store: FrameStore, kind: Alphabet, start: int, stop: int
) -> Iterator[tuple[str, str]]:
    source = store.sequences(kind)
    for block in split_rows(start, stop):
        sequences = source.get_many(np.arange(block.start, block.stop))
        yield from zip(store.frame_ids(block.start, block.stop), sequences, strict=True)


def _describe_run(run: Run, config: PredictConfig, embedded: Embedded) -> dict[str, Any]:
    """Return the document that run.json holds, but for the calls."""
    classifier, store, passes, screened = embedded
    # Those that compute, because another version may round otherwise.
    packages = ("virnucpro", "accelerate", "h5py", "numpy", "torch")
    # Empty for a pass that an earlier run has finished.
    seen = run.monitor.summary()
    document = {
        "schema_version": RUN_SCHEMA_VERSION,
        "started_at": run.started_at.isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "settings": config.settings(),
        "inputs": store.inputs,
        "backends": [each.job.model.describe() for each in passes],
        "precision": passes[0].job.precision,
        "frame_rule": str(classifier.rule),
        "classifier": {
            "path": str(config.resolved_model_path),
            "identity": classifier.identity,
            "made_for": classifier.metadata and asdict(classifier.metadata),
        },
        # Counted in the passes, because `merge` itself is one process.
        "num_processes": len(passes[0].summaries),
        "counts": {
            "records": store.num_records,
            "duplicate_ids": store.num_duplicate_ids,
            "chunks": store.num_chunks,
            "frames": store.num_rows,
            "distinct_dna": store.num_distinct("dna"),
            "distinct_proteins": store.num_distinct("protein"),
        },
        "seconds": run.stages | {"total": run.seconds},
        "passes": {
            each.job.name: [
                summary.to_run_json() | seen.get(each.job.name, {}).get(rank, {})
                for rank, summary in enumerate(each.summaries)
            ]
            for each in (*(screened.passes if screened else ()), *passes)
        },
    }
    return document if screened is None else document | {"screen": screened.about}

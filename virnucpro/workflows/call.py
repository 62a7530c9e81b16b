"""The story of `virnucpro call`: a finished run is called again by another rule.

The scores in `records.tsv` and `chunks.tsv` are those that decided the first calls and regions, so
no model is needed, and the result is exactly what `predict` would write.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from virnucpro.checkpoints.run_directory import RunDirectory, find_run
from virnucpro.checkpoints.whole_files import write_json
from virnucpro.config import CallConfig
from virnucpro.errors import InputError, name_few
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.reports.record_results import (
    PredictResult,
    describe_calls,
    replaced_results,
    write_decision,
)
from virnucpro.reports.run_json import explaining_settings, read_run_json
from virnucpro.reports.tables import explaining_numbers, parse_count, parse_share, read_table
from virnucpro.runtime.locks import locked
from virnucpro.runtime.logs import log_to_file
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.calls import RecordCalls, make_calls, share_scored
from virnucpro.scoring.decisions import check_calibrated, decide_calls
from virnucpro.scoring.region_model import REGION_MODEL, RegionModel
from virnucpro.scoring.regions import ChunkEvidence
from virnucpro.sequences.frame_store import FrameStore, open_frame_store

Part = TypeVar("Part")

_COUNTS = ("num_chunks", "num_open_chunks", "num_frames", "num_viral_chunks")


def call(config: CallConfig) -> PredictResult:
    """Call the records of a finished run again, and replace its calls.

    Raises:
        InputError: The directory holds no finished run, or a file of it is damaged.
        ClassifierError: The rule needs a calibration, and the run's classifier has none.
        UsageError: Another run is going on in the directory.
        OutputError: A file cannot be written.
    """
    CallConfig.require(config)
    began = time.monotonic()
    directory = find_run(config.run_dir)
    document = read_run_json(directory.run_json)
    # A run that goes on here would write its own calls over these.
    with locked(directory.lock_path):
        # A published classifier says nothing of itself.
        made_for = document["classifier"]["made_for"] or {}
        calibration = _make(Calibration, made_for.get("calibration"), directory)
        check_calibrated(config, calibration, Path(document["classifier"]["path"]))
        # After the check: a share of viral records that the run assumed is no wish of this command.
        with explaining_settings(directory.run_json):
            config = _fill_in(config, document)
        store = _open_store(directory, document)
        records = _read_records(directory.records_tsv, store.num_records)
        chunks = _read_chunks(directory, store.num_chunks, calibration, made_for)
        screen = document.get("screen", {})
        decision = decide_calls(
            records,
            config,
            calibration,
            made_for.get("threshold"),
            _make(Calibration, screen.get("calibration"), directory),
            screen.get("viral_share"),
        )
        # Only now: a command that was refused leaves no line in the log of the run.
        with log_to_file(directory.run_log):
            # Only where there is one: the run may have been told --no-report.
            has_page = directory.report_html.is_file()
            with replaced_results(directory):
                # `settings` stays as it is: it says what `predict` was asked for.
                document["counts"] |= write_decision(directory, store, decision, config, chunks)
                write_json(directory.run_json, document | describe_calls(store, decision))
            if has_page:
                write_run_page(directory, directory.report_html)
    return PredictResult.of(directory, document["counts"], time.monotonic() - began)


def _fill_in(config: CallConfig, document: Mapping[str, Any]) -> CallConfig:
    """Return the settings with those of the run where nothing is given."""
    # Of `predict`, and not of an earlier `call`. Runs of earlier states lack some settings.
    run = {"regions": "all", "fastq": False} | document["settings"]
    names = ["regions", "fastq"]
    # Either of the two replaces what the run had.
    if config.viral_share is None and config.estimate_viral_share is None:
        names += ["viral_share", "estimate_viral_share"]
    return replace(
        config, **{name: run.get(name) for name in names if getattr(config, name) is None}
    )


def _make(kind: Callable[..., Part], values: Any, directory: RunDirectory) -> Part | None:
    """Return a part of the classifier, as run.json repeats it; None if the classifier lacks it.

    Raises:
        InputError: This version does not know one of the values.
    """
    try:
        return kind(**values) if values else None
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{directory.run_json}: damaged, or written by another version of virnucpro "
            f"({error}); run virnucpro predict again with the same input"
        ) from error


def _open_store(directory: RunDirectory, document: Mapping[str, Any]) -> FrameStore:
    if not directory.frame_store_dir.is_dir():
        raise InputError(
            f"{directory.frame_store_dir}: not there, and viral.fasta is written from it; run "
            "virnucpro predict again with the same input and --resume"
        )
    store = open_frame_store(directory.frame_store_dir, verify=True)
    found, wanted = (
        [file["sha256"] for file in inputs] for inputs in (store.inputs, document["inputs"])
    )
    # Its viral.fasta would have the sequences of the other run.
    if found != wanted:
        paths = name_few([file["path"] for file in store.inputs])
        raise InputError(
            f"{directory.frame_store_dir}: is of another input ({paths}), so a later run has used "
            "the same checkpoints; run virnucpro predict again with the input of this run, and "
            "give each run a --checkpoint-dir of its own"
        )
    return store


def _read_records(path: Path, num_records: int) -> RecordCalls:
    """Return the records of a run as `records.tsv` has them.

    Raises:
        InputError: The table is not the run's, or has a wrong number.
    """
    # 8 bytes an entry: lists of Python's numbers and words would take five times as much.
    counts = {name: array("q") for name in _COUNTS}
    score = array("d")
    words: dict[str, list[str]] = {"reason": [], "judged_by": []}
    for number, line in read_table(path, (*counts, "score", *words)):
        with explaining_numbers(path, number):
            for name, column in counts.items():
                column.append(parse_count(line[name]))
            score.append(parse_share(line["score"]))
        for name, found in words.items():
            found.append(sys.intern(line[name]))
    _check_number(path, "records", len(score), num_records)
    columns = {name: np.array(column) for name, column in counts.items()}
    # Calls, probabilities and tiers follow from the rest: `decide_calls` makes them.
    unknown = np.full(num_records, np.nan)
    return RecordCalls(
        **columns,
        **{name: np.array(found, dtype=object) for name, found in words.items()},
        score=np.array(score),
        call=make_calls(unknown, None),
        probability=unknown,
        scored_share=share_scored(columns["num_open_chunks"], columns["num_chunks"]),
        confidence=np.full(num_records, "-", dtype=object),
    )


def _read_chunks(
    directory: RunDirectory,
    num_chunks: int,
    calibration: Calibration | None,
    made_for: Mapping[str, Any],
) -> ChunkEvidence:
    """Return what a run knows of its chunks.

    Raises:
        InputError: The table is not there or not the run's, or has a wrong number, or this version
            does not know the classifier's rule for regions.
    """
    path = directory.chunks_tsv
    # 8 bytes a chunk: a list of Python's numbers would take four times as much.
    score = array("d")
    for number, line in read_table(path, ["score"]):
        with explaining_numbers(path, number):
            score.append(parse_share(line["score"]))
    _check_number(path, "chunks", len(score), num_chunks)
    return ChunkEvidence(
        np.array(score),
        calibration,
        _make(RegionModel, made_for.get("regions"), directory) or REGION_MODEL,
        by_logit=made_for.get("chunk_head") is not None,
    )


def _check_number(path: Path, name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise InputError(
            f"{path}: {found} {name}, wanted {wanted} as in the run; run virnucpro predict again "
            "with --resume"
        )

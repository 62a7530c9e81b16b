"""`evaluate`: compares the calls of a finished run with the truth."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray
from virnucpro.checkpoints.run_directory import find_run, suggest_runs
from virnucpro.checkpoints.whole_files import make_output_dir, refuse_existing
from virnucpro.config import EvaluateConfig
from virnucpro.errors import InputError, brief, count, count_who
from virnucpro.reports.figures import Curve, draw_report
from virnucpro.reports.labels import Label, number_groups, read_truth
from virnucpro.reports.metrics import Predictions
from virnucpro.reports.pages.evaluation_page import write_evaluation_page
from virnucpro.reports.record_results import CALLS, STALE_NAME
from virnucpro.reports.report import (
    PAGE_NAME,
    Resampled,
    Section,
    against_the_rest,
    measure_subsets,
    write_report,
)
from virnucpro.reports.run_json import read_run_json
from virnucpro.reports.tables import explaining_numbers, parse_count, parse_share, read_table
from virnucpro.scoring.calls import SCREEN

logger = logging.getLogger(__name__)

_LENGTH_EDGES_BP = (500, 1000, 3000, 10_000)
_MAX_GROUPS = 50
# Scores are from 0 to 1. Those of a screen are another model's, and no rule calls its records
# viral, so all of them rank below those of the classifier. Records without a call rank last.
_SCREENED_LOWER_BY = 2.0
_SCORE_WITHOUT_CALL = -3.0


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        sections: All figures; the first section is that of all records with a call.
        without_call: How many records of `virus` and of `others` have no call, by reason.
        judged_by_screen: How many records of `virus` and of `others` the screen judged.
        output_dir: The directory of the report.
    """

    sections: list[Section]
    without_call: dict[str, dict[str, int]]
    judged_by_screen: dict[str, int]
    output_dir: Path


class _Record(NamedTuple):
    """A record that has a label, as `records.tsv` describes it."""

    id: str
    label: Label
    call: str
    reason: str
    length: int
    score: float
    probability: float
    is_screened: bool


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Compare the calls of a run with the truth and write the report.

    Raises:
        InputError: A table cannot be read, or no record has a label.
        OutputExistsError: There is a report already.
    """
    EvaluateConfig.require(config)
    directory = config.resolved_output_dir
    stale = directory / STALE_NAME
    # The run was called again after that report, so the report may be replaced without --force.
    if not (config.force or stale.exists()):
        refuse_existing(directory)
    # A pipe is as good as a file.
    if not config.records_tsv.exists():
        run = find_run(config.run_dir)
        if run.run_json.is_file() or run.metrics_path.is_file():
            # It says that the run has not finished, or that it is a share.
            read_run_json(run.run_json)
        raise InputError(
            f"{config.records_tsv}: no such file; wanted the output directory of a finished "
            f"virnucpro predict, or its records.tsv{suggest_runs(config.run_dir)}"
        )
    truth = read_truth(config.truth)
    records = _read_records(config, truth)
    without_call = _count_without_call(records)
    judged_by_screen = _count_screened(records)
    has_call = np.array([record.call != "none" for record in records])
    predictions = _make_predictions(records, has_call)
    called = predictions.select(has_call)
    classes = _make_members("class", [one.label.name_of_class for one in records], predictions)
    names = [one.label.group for one in records]
    groups = _make_members("group", names, predictions, _MAX_GROUPS)
    subsets = [*_make_lengths(records), *classes, *groups]
    of_called = [(name, chosen[has_call]) for name, chosen in subsets]
    resampled: Resampled = "groups" if any(one.label.group for one in records) else "records"
    sections = [
        *measure_subsets("with a call", called, of_called, resampled),
        *measure_subsets("all", predictions, subsets, resampled),
    ]
    # Nothing is written before both tables are read and measured.
    make_output_dir(directory)
    about = {
        "predictions": str(config.records_tsv),
        "truth": str(config.truth),
        "num_labels": len(truth),
        "without_call": without_call,
        "judged_by_screen": judged_by_screen,
    }
    write_report(directory, sections, about)
    curves = [
        Curve(found, next(one for one in sections if one.records == name))
        for name, found in (("with a call", called), ("all", predictions))
        if len(found.score)
    ]
    subsets_of_called = [one for one in sections if one.records == "with a call"]
    classes = [(name, chosen[has_call]) for name, chosen in classes]
    draw_report(directory, f"{config.records_tsv}", curves, subsets_of_called, classes)
    stale.unlink(missing_ok=True)
    write_evaluation_page(directory, directory / PAGE_NAME)
    return Evaluation(sections, without_call, judged_by_screen, directory)


def _read_records(config: EvaluateConfig, truth: dict[str, Label]) -> list[_Record]:
    """Return the records that have a label, in the order of `records.tsv`."""
    path = config.records_tsv
    columns = ("record_id", "length", "score", "call", "reason")
    records, num_records = [], 0
    for number, line in read_table(path, columns, ("probability", "judged_by")):
        num_records += 1
        # Labels of a part of the records are enough.
        if line["record_id"] not in truth:
            continue
        with explaining_numbers(path, number):
            record = _Record(
                line["record_id"],
                truth[line["record_id"]],
                line["call"],
                line["reason"],
                parse_count(line["length"]),
                parse_share(line["score"]),
                # Tables of earlier states do not have these columns.
                parse_share(line.get("probability", "NA")),
                line.get("judged_by") == SCREEN,
            )
            _check_call(record)
        records.append(record)
    if not records:
        raise InputError(
            f"{config.truth}: none of its {count(len(truth), 'id')} is among the "
            f"{count(num_records, 'record')} of {path}; wanted the first words of the sequences' "
            "headers"
        )
    logger.info(
        "%s a label; labels without a record: %d",
        count_who(len(records), "record", "have", of=num_records),
        len(truth.keys() - {record.id for record in records}),
    )
    return records


def _check_call(record: _Record) -> None:
    """Refuse a call that another program wrote, and that would be taken for another one.

    Raises:
        ValueError: It is unknown, or has no score, so the record cannot be ranked.
    """
    if record.call not in CALLS:
        raise ValueError(f"the call is {brief(record.call)}, wanted one of {', '.join(CALLS)}")
    if record.call != "none" and math.isnan(record.score):
        raise ValueError(f"the call is {record.call} and the score NA; wanted a number from 0 to 1")


def _count_without_call(records: Sequence[_Record]) -> dict[str, dict[str, int]]:
    """Return how many records of `virus` and of `others` have no call, by reason."""
    counts: dict[str, Counter[str]] = {"virus": Counter(), "others": Counter()}
    for record in records:
        if record.call == "none":
            counts["virus" if record.label.is_viral else "others"][record.reason] += 1
    return {name: dict(found) for name, found in counts.items()}


def _count_screened(records: Sequence[_Record]) -> dict[str, int]:
    """Return how many records of `virus` and of `others` the screen judged."""
    is_viral = [record.label.is_viral for record in records if record.is_screened]
    return {"virus": sum(is_viral), "others": len(is_viral) - sum(is_viral)}


def _make_predictions(records: Sequence[_Record], has_call: BoolArray) -> Predictions:
    score = np.array([record.score for record in records])
    is_screened = np.array([record.is_screened for record in records])
    probability = np.array([record.probability for record in records])
    # Those of a screen alone say nothing of a run whose classifier has no calibration.
    if np.isnan(probability[has_call]).any():
        probability = np.full(len(records), np.nan)
    return Predictions(
        is_viral=np.array([record.label.is_viral for record in records]),
        score=np.where(has_call, score - _SCREENED_LOWER_BY * is_screened, _SCORE_WITHOUT_CALL),
        probability=probability,
        is_called=np.array([record.call == "virus" for record in records]),
        cluster=number_groups([record.label.group for record in records]),
        # Each record counts once. Only `train` balances classes.
        weight=np.ones(len(records)),
    )


def _make_lengths(records: Sequence[_Record]) -> Iterator[tuple[str, BoolArray]]:
    """Yield the bins of lengths as subsets."""
    bins = np.digitize([record.length for record in records], _LENGTH_EDGES_BP)
    for index, low in enumerate((0, *_LENGTH_EDGES_BP)):
        high = f"-{_LENGTH_EDGES_BP[index] - 1}" if index < len(_LENGTH_EDGES_BP) else "+"
        yield f"length {low}{high}", bins == index


def _make_members(
    what: str, names: Sequence[str], predictions: Predictions, at_most: int | None = None
) -> list[tuple[str, BoolArray]]:
    """Return a subset for each of the names that most records have."""
    name_N = np.array(names, dtype=object)
    # An empty name means that the table says nothing.
    most_common = Counter(name for name in names if name).most_common(at_most)
    return [
        against_the_rest(f"{what} {name}", name_N == name, predictions.is_viral)
        for name in sorted(name for name, _ in most_common)
    ]

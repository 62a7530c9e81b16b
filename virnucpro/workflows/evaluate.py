"""`evaluate`: the calls of a finished run, compared with the truth."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from virnucpro.config import EvaluateConfig
from virnucpro.errors import InputError, OutputExistsError
from virnucpro.reports.figures import draw_report, require_matplotlib
from virnucpro.reports.metrics import Bools, Ints, Predictions
from virnucpro.reports.report import (
    Resampled,
    Section,
    against_the_rest,
    measure_subsets,
    write_report,
)
from virnucpro.reports.tables import read_table

logger = logging.getLogger(__name__)

_IS_VIRAL = {"virus": True, "viral": True, "1": True, "others": False, "other": False, "0": False}
_LENGTH_EDGES_BP = (500, 1000, 3000, 10_000)
_MOST_GROUPS = 50
# Below every score: a record without a call is the last that would be called viral.
_SCORE_WITHOUT_CALL = -1.0


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        sections: All figures; the first is that of all records with a call.
        without_call: For `virus` and `others` how many records have no call, by reason.
        output_dir: Where the report is.
    """

    sections: list[Section]
    without_call: dict[str, dict[str, int]]
    output_dir: Path


class _Labelled(NamedTuple):
    """The records that have a label, in the order of `records.tsv`."""

    predictions: Predictions
    has_call: Bools
    reason: list[str]
    length_bp: Ints
    name_of_class: list[str]
    group: list[str]
    resampled: Resampled


class _Label(NamedTuple):
    """What the truth says of a record; class and group are empty where it names none."""

    is_viral: bool
    name_of_class: str
    group: str


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Compare the calls of a run with the truth and write the report.

    Raises:
        InputError: A table cannot be read, or no record has a label.
        OutputExistsError: There is a report already.
        UsageError: matplotlib is not installed.
    """
    require_matplotlib()
    directory = config.resolved_output_dir
    if directory.exists() and not config.force:
        raise OutputExistsError(
            f"{directory}: exists already; overwrite the report there with --force, or choose "
            "another directory (-o)"
        )
    truth = _read_truth(config.truth)
    labelled = _read_records(config, truth)
    has_call, is_viral = labelled.has_call, labelled.predictions.is_viral
    without_call = {
        name: dict(
            Counter(
                reason
                for reason, called, viral in zip(labelled.reason, has_call, is_viral, strict=True)
                if not called and viral == wanted
            )
        )
        for name, wanted in (("virus", True), ("others", False))
    }
    called = labelled.predictions.select(has_call)
    subsets = list(_make_subsets(labelled))
    of_called = ((name, chosen[has_call]) for name, chosen in subsets)
    sections = [
        *measure_subsets("with a call", called, of_called, labelled.resampled),
        *measure_subsets("all", labelled.predictions, subsets, labelled.resampled),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    about = {
        "predictions": str(config.records_tsv),
        "truth": str(config.truth),
        "num_labels": len(truth),
        "without_call": without_call,
    }
    write_report(directory, sections, about)
    if called.is_viral.any() and not called.is_viral.all():
        draw_report(directory, called, f"{config.records_tsv}: records with a call")
    return Evaluation(sections, without_call, directory)


def _read_truth(path: Path) -> dict[str, _Label]:
    truth: dict[str, _Label] = {}
    for number, line in read_table(path, ("id", "label"), ("class", "group")):
        if line["label"] not in _IS_VIRAL:
            raise InputError(
                f"{path}, line {number}: the label is {line['label']!r}, wanted one of "
                f"{', '.join(_IS_VIRAL)}"
            )
        found = _Label(_IS_VIRAL[line["label"]], line.get("class", ""), line.get("group", ""))
        if truth.setdefault(line["id"], found) != found:
            raise InputError(
                f"{path}, line {number}: {line['id']!r} had another label, class or group before"
            )
    return truth


def _read_records(config: EvaluateConfig, truth: dict[str, _Label]) -> _Labelled:
    path = config.records_tsv
    columns = ("record_id", "length", "score", "call", "reason")
    labelled, num_records = [], 0
    for number, line in read_table(path, columns, ("probability",)):
        num_records += 1
        if line["record_id"] in truth:
            labelled.append((number, line))
    if not labelled:
        raise InputError(
            f"{config.truth}: none of its {len(truth)} ids is among the {num_records} records of "
            f"{path}; wanted the first words of the sequences' headers"
        )
    logger.info(
        "%d of %d records have a label; %d labels have no record",
        len(labelled),
        num_records,
        len(truth.keys() - {line["record_id"] for _, line in labelled}),
    )
    found = [truth[line["record_id"]] for _, line in labelled]
    has_call = np.array([line["call"] != "none" for _, line in labelled])
    score = _read_numbers(path, labelled, "score")
    return _Labelled(
        Predictions(
            is_viral=np.array([label.is_viral for label in found]),
            score=np.where(has_call, score, _SCORE_WITHOUT_CALL),
            probability=_read_numbers(path, labelled, "probability"),
            is_called=np.array([line["call"] == "virus" for _, line in labelled]),
            cluster=_number_groups([label.group for label in found]),
            weight=np.ones(len(found)),
        ),
        has_call,
        [line["reason"] for _, line in labelled],
        _read_numbers(path, labelled, "length").astype(np.int64),
        [label.name_of_class for label in found],
        [label.group for label in found],
        "groups" if any(label.group for label in found) else "records",
    )


def _number_groups(groups: list[str]) -> Ints:
    """Return int64 (N,): the number of each record's group; a record without one has its own."""
    group = np.array(groups, dtype=object)
    number = np.unique(group, return_inverse=True)[1].astype(np.int64)
    alone = np.flatnonzero(group == "")
    number[alone] = len(group) + alone
    return number


def _read_numbers(path: Path, lines: list[tuple[int, dict[str, str]]], name: str) -> Any:
    numbers = np.full(len(lines), np.nan)
    for index, (number, line) in enumerate(lines):
        word = line.get(name, "NA")
        try:
            numbers[index] = np.nan if word == "NA" else float(word)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: {name} is {word!r}, wanted a number or NA"
            ) from error
    return numbers


def _make_subsets(labelled: _Labelled) -> Iterator[tuple[str, Bools]]:
    """Yield the length bins, the classes and the largest groups."""
    edges = (0, *_LENGTH_EDGES_BP)
    bins = np.digitize(labelled.length_bp, _LENGTH_EDGES_BP)
    for index, low in enumerate(edges):
        is_last = index == len(edges) - 1
        name = f"length {low}+" if is_last else f"length {low}-{edges[index + 1] - 1}"
        yield name, bins == index
    groups = Counter(name for name in labelled.group if name)
    largest = [name for name, _ in groups.most_common(_MOST_GROUPS)]
    for what, names, wanted in (
        ("class", labelled.name_of_class, set(labelled.name_of_class)),
        ("group", labelled.group, largest),
    ):
        name_N = np.array(names, dtype=object)
        for name in sorted(set(wanted) - {""}):
            is_viral = labelled.predictions.is_viral
            yield against_the_rest(f"{what} {name}", name_N == name, is_viral)

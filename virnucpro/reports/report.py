"""Measures predictions in subsets, writes the figures as a table and as JSON, and reads these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray
from virnucpro.checkpoints.whole_files import open_whole, write_json
from virnucpro.errors import InputError, count
from virnucpro.reports.checked_json import check_fields, load_schema, make_validator, read_object
from virnucpro.reports.metrics import Estimate, Predictions, count_clusters, estimate_metrics

REPORT_NAME = "report.json"
"""Of the file with all figures in the directory of a report."""

PAGE_NAME = "report.html"
"""Of the page beside it."""

REPORT_SCHEMA_VERSION = 1
_REMEDY = (
    "the file was changed, or is of another version of virnucpro. Repeat the `virnucpro evaluate` "
    "that wrote it with --force, or the `virnucpro train` with --resume"
)
# By how much the loss of the held-out records may rise before it is called an overfit.
_OVERFIT_RISE = 0.05
_COLUMNS = (
    *("records", "subset", "num_viral", "num_others", "metric", "value", "low", "high"),
    *("resampled", "num_viral_resampled", "num_others_resampled"),
)

Resampled = Literal["records", "groups"]
"""What the clusters of the predictions are."""


class Section(NamedTuple):
    """The figures of one subset.

    Attributes:
        records: Which records were measured, such as `with a call`.
        subset: Which part of these records, such as `length 500-999`, or `all`.
        num_viral: Viral records in the subset.
        num_others: Other records in the subset.
        resampled: What was resampled for the intervals.
        num_viral_resampled: How many groups, or records, have viral records.
        num_others_resampled: How many groups, or records, have others.
        estimates: The figures by name.
    """

    records: str
    subset: str
    num_viral: int
    num_others: int
    resampled: Resampled
    num_viral_resampled: int
    num_others_resampled: int
    estimates: dict[str, Estimate]


def measure_subsets(
    records: str,
    predictions: Predictions,
    subsets: Iterable[tuple[str, BoolArray]],
    resampled: Resampled,
    seed: int = 0,
) -> list[Section]:
    """Return the figures of all records, and of each subset that has any records.

    Args:
        records: Which records these are, in words.
        predictions: N records.
        subsets: Names, each with a mask, bool (N,).
        resampled: What the clusters of the predictions are.
        seed: The seed of the confidence intervals.
    """
    # All records come first: commands print and draw the first section.
    everything = ("all", np.ones(len(predictions.score), np.bool_))
    sections = []
    for name, chosen in (everything, *subsets):
        part = predictions.select(chosen)
        if not len(part.score):
            continue
        num_viral = int(part.is_viral.sum())
        num_others = len(part.score) - num_viral
        clusters, estimates = count_clusters(part), estimate_metrics(part, seed)
        sections.append(
            Section(records, name, num_viral, num_others, resampled, *clusters, estimates)
        )
    return sections


def against_the_rest(name: str, is_member: BoolArray, is_viral: BoolArray) -> tuple[str, BoolArray]:
    """Return a subset for a class of records that contains viral records and others.

    Most figures compare two kinds. So a class of one kind, such as phages, is measured together
    with all records of the other kind.

    Args:
        name: The name of the class.
        is_member: bool (N,), whether each record is in the class.
        is_viral: bool (N,), the truth.
    """
    # A group of both kinds needs no others beside it.
    kinds = set(is_viral[is_member].tolist())
    if kinds == {True}:
        return f"{name} against all others", is_member | ~is_viral
    if kinds == {False}:
        return f"all viral against {name}", is_member | is_viral
    return name, is_member


def name_moment(losses: Sequence[Mapping[str, float]], epoch: int) -> str:
    """Return when losses were measured: `epoch 3`, or `step 300` of a fine-tuning."""
    step = losses[epoch - 1].get("step")
    return f"epoch {epoch}" if step is None else f"step {step:.0f}"


def find_overfit(losses: Sequence[Mapping[str, float]], best_epoch: int) -> list[str]:
    """Return a warning if the loss of the held-out records rose after the epoch that was kept."""
    best, last = losses[best_epoch - 1], losses[-1]
    # If both losses rise, the training diverged, which is another trouble.
    if last["valid"] <= best["valid"] * (1 + _OVERFIT_RISE) or last["train"] >= best["train"]:
        return []
    when = name_moment(losses, best_epoch)
    return [
        f"the training overfitted: after {when} the loss of the held-out records rose "
        f"from {best['valid']:.3g} to {last['valid']:.3g}, and that of the training records fell. "
        f"The classifier is that of {when}; more records, or more groups, would help"
    ]


def write_report(directory: Path, sections: Sequence[Section], about: dict[str, Any]) -> None:
    """Write `report.tsv` with a line for each figure, and `report.json`, which includes `about`.

    Raises:
        VirnucproError: A file cannot be written.
    """
    with open_whole(directory / "report.tsv") as file:
        file.write("\t".join(_COLUMNS) + "\n")
        for section in sections:
            for metric, estimate in section.estimates.items():
                numbers = ("NA" if math.isnan(number) else f"{number:.6g}" for number in estimate)
                before, after = map(str, section[:4]), map(str, section[4:7])
                file.write("\t".join((*before, metric, *numbers, *after)) + "\n")
    document = {
        "schema_version": REPORT_SCHEMA_VERSION,
        **about,
        "sections": [
            section._asdict()
            | {"estimates": {name: _describe(one) for name, one in section.estimates.items()}}
            for section in sections
        ],
    }
    write_json(directory / REPORT_NAME, document)


def read_report(path: Path) -> dict[str, Any]:
    """Return a report.json, all of whose fields have the types of the schema.

    Raises:
        InputError: It cannot be read, is of another version, or a field is missing or wrong.
    """

    def refuse(found: str) -> InputError:
        return InputError(
            f"{path}: {found}; wanted the directory of a report of virnucpro train or evaluate"
        )

    report = read_object(path, REPORT_SCHEMA_VERSION, refuse)
    check_fields(path, report, _make_validator(), refuse, _REMEDY)
    losses, best_epoch = report.get("losses", []), report.get("best_epoch", 0)
    if best_epoch > len(losses):
        raise InputError(
            f"{path}: best_epoch is {best_epoch}, and there are losses of "
            f"{count(len(losses), 'epoch')}; {_REMEDY}"
        )
    return report


@cache
def _make_validator() -> Any:
    return make_validator(load_schema(REPORT_NAME))


def _describe(estimate: Estimate) -> dict[str, float | None] | None:
    # JSON has no NaN.
    if math.isnan(estimate.value):
        return None
    return {
        key: None if math.isnan(number) else number for key, number in estimate._asdict().items()
    }

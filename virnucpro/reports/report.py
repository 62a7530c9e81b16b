"""The report on predictions: what is measured on which records, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from virnucpro.checkpoints.whole_files import open_whole, write_json
from virnucpro.reports.metrics import (
    Bools,
    Estimate,
    Predictions,
    count_clusters,
    estimate_metrics,
)

REPORT_SCHEMA_VERSION = 1
_COLUMNS = (
    *("records", "subset", "num_viral", "num_others", "metric", "value", "low", "high"),
    *("resampled", "num_viral_resampled", "num_others_resampled"),
)

Resampled = Literal["records", "groups"]
"""What a cluster of the predictions is."""


class Section(NamedTuple):
    """The figures of one subset.

    Attributes:
        records: Which records are meant, such as `with a call`.
        subset: Which of those, such as `length 500-999`, or `all`.
        num_viral: Viral records in it.
        num_others: Other records in it.
        resampled: What the intervals come of resampling as a whole.
        num_viral_resampled: How many of those have viral records.
        num_others_resampled: How many have others.
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
    subsets: Iterable[tuple[str, Bools]],
    resampled: Resampled,
    seed: int = 0,
) -> list[Section]:
    """Return the figures of all records and of each subset that has any.

    Args:
        records: Which records these are, in words.
        predictions: N records.
        subsets: Names, and bool (N,) each.
        resampled: What their clusters are.
        seed: Of the confidence intervals.
    """
    everything = ("all", np.ones(len(predictions.score), np.bool_))
    sections = []
    for name, chosen in (everything, *subsets):
        part = predictions.select(chosen)
        if len(part.score):
            num_viral = int(part.is_viral.sum())
            sections.append(
                Section(
                    records,
                    name,
                    num_viral,
                    len(part.score) - num_viral,
                    resampled,
                    *count_clusters(part),
                    estimate_metrics(part, seed),
                )
            )
    return sections


def against_the_rest(name: str, is_member: Bools, is_viral: Bools) -> tuple[str, Bools]:
    """Return a subset for a class of records, which has both kinds.

    A class of one kind, say phages, is measured against all records of the other kind, since most
    figures are about telling two kinds apart.

    Args:
        name: What the subset is called.
        is_member: bool (N,), which records are in it.
        is_viral: bool (N,), the truth.
    """
    kinds = is_viral[is_member]
    if kinds.all() and len(kinds):
        return f"{name} against all others", is_member | ~is_viral
    if not kinds.any() and len(kinds):
        return f"all viral against {name}", is_member | is_viral
    return name, is_member


def write_report(directory: Path, sections: Sequence[Section], about: dict[str, Any]) -> None:
    """Write `report.tsv`, a line for each figure, and `report.json`, with `about` in it.

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
        "sections": [_describe(section) for section in sections],
    }
    write_json(directory / "report.json", document)


def _describe(section: Section) -> dict[str, Any]:
    metrics = {
        name: None
        if math.isnan(estimate.value)
        else {
            key: None if math.isnan(number) else number
            for key, number in estimate._asdict().items()
        }
        for name, estimate in section.estimates.items()
    }
    return {**section._asdict(), "estimates": metrics}

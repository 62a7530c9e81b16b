"""The page of the figures that `train` and `evaluate` measured."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virnucpro.errors import count
from virnucpro.reports.metrics import METRICS
from virnucpro.reports.pages.records import show_text
from virnucpro.reports.pages.render import write_page
from virnucpro.reports.record_results import STALE_NAME
from virnucpro.reports.report import REPORT_NAME, name_moment, read_report


def write_evaluation_page(directory: Path, path: Path) -> None:
    """Write the page of a report, from its numbers and its figures.

    Args:
        directory: Of the report.
        path: The file to write.

    Raises:
        InputError: The numbers cannot be read, or one is missing or wrong.
        OutputError: The page cannot be written.
    """
    report = read_report(directory / REPORT_NAME)
    figures = directory / "report.svg"
    # As a picture, it can run no script and fetch nothing, whoever has made it.
    picture = base64.b64encode(figures.read_bytes()).decode() if figures.is_file() else None
    is_training = "classifier" in report
    subject = report["classifier"]["path"] if is_training else report["predictions"]
    write_page(
        path,
        "evaluation.html",
        title=f"virnucpro: {'classifier' if is_training else 'run'} {show_text(subject)}",
        report=report,
        training=_describe_training(report) if is_training else None,
        picture=picture,
        metrics=METRICS,
        groups=list(dict.fromkeys(one["records"] for one in report["sections"])),
        is_stale=(directory / STALE_NAME).is_file(),
    )


def _describe_training(report: Mapping[str, Any]) -> str:
    losses = report["losses"]
    kind = "evaluation" if "step" in losses[0] else "epoch"
    return f"{count(len(losses), kind)}; {name_moment(losses, report['best_epoch'])} was kept"

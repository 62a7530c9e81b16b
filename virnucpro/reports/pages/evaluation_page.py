"""The page of the figures that `train` and `evaluate` measured."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from virnucpro.errors import InputError, first_line
from virnucpro.reports.metrics import METRICS
from virnucpro.reports.pages.render import write_page
from virnucpro.reports.record_results import STALE_NAME
from virnucpro.reports.report import REPORT_NAME, REPORT_SCHEMA_VERSION
from virnucpro.reports.run_json import check_schema_version

_KEYS = ("schema_version", "sections")


def write_evaluation_page(directory: Path, path: Path) -> None:
    """Write the page of a report, from its numbers and its figures.

    Args:
        directory: Of the report.
        path: The file to write.

    Raises:
        InputError: The numbers cannot be read.
        OutputError: The page cannot be written.
    """
    report = _read_report(directory / REPORT_NAME)
    figures = directory / "report.svg"
    # As a picture, it can run no script and fetch nothing, whoever has made it.
    picture = base64.b64encode(figures.read_bytes()).decode() if figures.is_file() else None
    # `evaluate` names a run, and `train` a classifier.
    subject = report.get("predictions") or report["classifier"]["path"]
    write_page(
        path,
        "evaluation.html",
        title=f"virnucpro: {'classifier' if 'classifier' in report else 'run'} {subject}",
        report=report,
        picture=picture,
        metrics=METRICS,
        groups=list(dict.fromkeys(one["records"] for one in report["sections"])),
        is_stale=(directory / STALE_NAME).is_file(),
    )


def _read_report(path: Path) -> dict[str, Any]:
    wanted = "wanted the directory of a report of virnucpro train or evaluate"
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); {wanted}") from error
    check_schema_version(path, report, REPORT_SCHEMA_VERSION)
    if not isinstance(report, dict) or any(key not in report for key in _KEYS):
        raise InputError(f"{path}: lacks {' or '.join(_KEYS)}; {wanted}")
    return report

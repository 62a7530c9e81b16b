"""The main figures of a report, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from virnucpro.reports.report import Section

_SHOWN = ("auroc", "auprc", "precision", "recall", "f1", "mcc", "calibration_error")


def echo_sections(sections: Sequence[Section]) -> None:
    """Print a line for each section: its records, and the figures with their intervals."""
    for section in sections:
        click.echo(
            f"{section.records}, {section.subset}: {section.num_viral:,} viral, "
            f"{section.num_others:,} others; {_describe_intervals(section)}"
        )
        for name in _SHOWN:
            value, low, high = section.estimates[name]
            text = "not defined" if math.isnan(value) else f"{value:.3f}"
            interval = "" if math.isnan(low) else f" ({low:.3f}-{high:.3f})"
            click.echo(f"  {name.replace('_', ' '):18} {text}{interval}")


def _describe_intervals(section: Section) -> str:
    drawn = (
        f"{section.num_viral_resampled:,} viral and {section.num_others_resampled:,} other "
        f"{section.resampled}"
    )
    if all(math.isnan(low) for _, low, _ in section.estimates.values()):
        return f"{drawn} are too few for intervals"
    return f"95 % intervals by resampling {drawn}"

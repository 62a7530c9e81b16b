"""The main figures of a report, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from virnucpro.evaluation.report import Section

_SHOWN = ("auroc", "auprc", "precision", "recall", "f1", "mcc", "calibration_error")


def echo_sections(sections: Sequence[Section]) -> None:
    """Print a line for each section: its records, and the figures with their intervals."""
    for section in sections:
        click.echo(
            f"{section.records}, {section.subset}: "
            f"{section.num_viral:,} viral, {section.num_others:,} others; 95 % intervals by "
            f"resampling {section.num_resampled:,} {section.resampled}"
        )
        for name in _SHOWN:
            value, low, high = section.estimates[name]
            # NaN alone is unequal to itself.
            text = f"{value:.3f}" if value == value else "not defined"
            interval = f" ({low:.3f}-{high:.3f})" if low == low else ""
            click.echo(f"  {name.replace('_', ' '):18} {text}{interval}")

"""`virnucpro report`: a page that shows finished runs."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo
from virnucpro.config import ReportConfig


@config_command("report", short_help="Write a page that shows finished runs.")
def report_command(ctx: click.Context, config: ReportConfig) -> None:
    """Write one HTML file that shows a finished run, or compares several.

    predict, train and evaluate write such a page at their end. The file needs no network, so you
    can copy it or send it.

    \b
    Examples:
      virnucpro report contigs_predictions
      virnucpro report sample_1 sample_2 sample_3 -o samples.html
      virnucpro report contigs_predictions/evaluation
    """
    from virnucpro import report

    echo(f"report: {report(config)}")

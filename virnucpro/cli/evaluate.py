"""`virnucpro evaluate`: how well a run's calls agree with the truth."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo, echo_sections
from virnucpro.config import EvaluateConfig


@config_command("evaluate", short_help="Compare the calls of a run with the truth.")
def evaluate_command(ctx: click.Context, config: EvaluateConfig) -> None:
    """Compare the calls of a run with known labels.

    The report (report.html, .tsv, .json, .png, .svg) gives each number twice: for the records with
    a call, and for all records. Among all records, a record without a call counts as not viral.

    \b
    Example:
      virnucpro evaluate contigs_predictions --truth labels.tsv
    """
    from virnucpro import evaluate

    evaluation = evaluate(config)
    # Subsets are in the report; there may be dozens.
    echo_sections([section for section in evaluation.sections if section.subset == "all"])
    for name, reasons in evaluation.without_call.items():
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        echo(f"without a call, {name}: {told or '0'}")
    screened = evaluation.judged_by_screen
    if any(screened.values()):
        echo(
            f"judged by the screen: {screened['virus']:,} viral, {screened['others']:,} others; "
            "in auroc and auprc, they rank below all records that the classifier judged"
        )
    echo(f"report: {evaluation.output_dir}")

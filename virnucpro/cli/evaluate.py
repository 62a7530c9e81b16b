"""`virnucpro evaluate`: how well a run's calls agree with the truth."""

from __future__ import annotations

from pathlib import Path

import click

from virnucpro.cli.sections import echo_sections
from virnucpro.config import EvaluateConfig


@click.command("evaluate", short_help="Compare the calls of a run with the truth.")
@click.argument("predictions", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--truth",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TSV",
    help="Columns id, label (virus or others) and, if wanted, class (a kind, measured on its own) "
    "and group (related records, resampled as a whole).",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The report.  [default: evaluation, beside records.tsv]",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the report.")
def evaluate_command(predictions: Path, truth: Path, output_dir: Path | None, force: bool) -> None:
    """Measure the calls of PREDICTIONS against labels.

    PREDICTIONS is the output directory of predict, or its records.tsv. The
    report (report.tsv, .json, .png, .svg) has every figure twice: of the records
    with a call, and of all, where one without a call counts as not viral.

    \b
    Example:
      virnucpro evaluate contigs_predictions --truth labels.tsv
    """  # noqa: D301 (click reads the \b)
    from virnucpro import evaluate

    evaluation = evaluate(EvaluateConfig(predictions, truth, output_dir, force))
    echo_sections([section for section in evaluation.sections if section.subset == "all"])
    for name, reasons in evaluation.without_call.items():
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        click.echo(f"without a call, {name}: {told or '0'}")
    click.echo(f"report: {evaluation.output_dir}")

"""`virnucpro export`: embeddings in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.cli.bars import counting_bars

if TYPE_CHECKING:
    from virnucpro.workflows.export import ExportFormat


@click.command("export", short_help="Write embeddings in formats of other programs.")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["pt", "npz", "anndata"]),
    required=True,
    help="pt: as the original's merged files; anndata: one .h5ad.",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Made if need be; it must be empty.",
)
@click.option(
    "--sequences-per-file",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Rows in a file; anndata is always one.",
)
def export_command(run: Path, to: ExportFormat, output_dir: Path, sequences_per_file: int) -> None:
    """Write the embeddings of a run in the format of another program.

    RUN is the output directory of predict, or of migrate. Rows that lack one of
    their embeddings are left out, and counted.

    \b
    Examples:
      virnucpro export contigs_predictions --to anndata -o exported
      virnucpro export contigs_predictions --to pt -o exported
    """  # noqa: D301 (click reads the \b)
    from virnucpro.workflows.export import ExportConfig, export_embeddings

    with counting_bars() as show:
        summary = export_embeddings(ExportConfig(run, output_dir, to, sequences_per_file), show)
    click.echo(
        f"Written: {summary.num_rows:,} rows in {len(summary.paths):,} files in {output_dir}"
    )
    if summary.num_partial:
        click.echo(f"Left out, with one embedding only: {summary.num_partial:,} rows")

"""`virnucpro export`: embeddings in the formats of other programs."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import counting_bars, echo
from virnucpro.config import ExportConfig
from virnucpro.errors import count


@config_command("export", short_help="Write embeddings in the formats of other programs.")
def export_command(ctx: click.Context, config: ExportConfig) -> None:
    """Write the embeddings of a run in the format of another program.

    A row is an open frame or a stretch. A row that lacks one of its embeddings is left out, and
    the command prints how many such rows there are.

    \b
    Examples:
      virnucpro export contigs_predictions --to anndata -o exported
      virnucpro export contigs_predictions --to pt -o exported
    """
    from virnucpro.workflows.export import export_embeddings

    with counting_bars() as show:
        summary = export_embeddings(config, show)
    rows, files = count(summary.num_rows, "row"), count(len(summary.paths), "file")
    echo(f"Written: {rows} in {files} in {config.output_dir}")
    if summary.num_partial:
        echo(f"Left out, with one embedding only: {count(summary.num_partial, 'row')}")

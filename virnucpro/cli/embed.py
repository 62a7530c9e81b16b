"""`virnucpro embed`: one backend over one file of sequences."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from virnucpro.checkpoints.run_directory import EmbedDirectory
from virnucpro.cli.options import (
    INPUT_PATH,
    LAUNCH_OPTIONS,
    compute_options,
    given_options,
    hide_other_gpus,
    launch_options,
    leave_to_launch,
    settle_output,
    wants_progress,
)
from virnucpro.cli.progress import shown_progress
from virnucpro.config import STDIN, EmbedConfig

logger = logging.getLogger(__name__)


@click.command("embed")
@click.argument("input", type=INPUT_PATH)
@click.option(
    "--backend", required=True, metavar="NAME", help="A name that `virnucpro backends` lists."
)
@click.option(
    "--weights",
    required=True,
    metavar="WEIGHTS",
    help="File, directory or hub id (owner/name@revision).",
)
@click.option(
    "-o",
    "--output",
    "output_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The HDF5 file to write.",
)
@click.option("--resume", is_flag=True, help="Go on with what an earlier run has finished.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output file.")
@compute_options
@launch_options
@click.option(
    "--batch-tokens",
    type=int,
    metavar="TOKENS",
    help="Tokens per batch.  [default: by the device]",
)
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.pass_context
def embed_command(ctx: click.Context, /, **_: Any) -> None:
    """Write the embeddings of sequences to an HDF5 file.

    INPUT is FASTA or FASTQ, plain or compressed (gz, bz2, xz, zst), or - for
    standard input: DNA or protein, as the backend reads. Rows keep the input's
    order and carry its ids.

    \b
    Examples:
      virnucpro embed proteins.faa --backend esm2 \\
        --weights facebook/esm2_t33_650M_UR50D -o proteins.h5
      virnucpro embed genes.fasta --backend dnabert-s \\
        --weights models/DNABERT-S -o genes.h5
    """  # noqa: D301 (click reads the \b)
    apart = LAUNCH_OPTIONS | {"no_progress"}
    config = EmbedConfig(**{k: v for k, v in given_options(ctx).items() if k not in apart})
    hide_other_gpus(ctx.params["gpus"])
    path = config.output_path
    settled = settle_output(config, path, used=path.exists(), may_ask=config.input != STDIN)
    if settled is None:
        return
    leave_to_launch(ctx, settled, force=settled.force and not config.force)
    from virnucpro import embed

    with shown_progress(EmbedDirectory(path).metrics_path, wanted=wants_progress(ctx)):
        embed(settled)
    logger.info("embeddings: %s", path)

"""`virnucpro embed`: one backend over one file of sequences."""

from __future__ import annotations

import logging

import click

from virnucpro.checkpoints.run_directory import EmbedDirectory
from virnucpro.cli.options import config_command
from virnucpro.cli.starting import hide_other_gpus, leave_to_launch, settle_output, wants_progress
from virnucpro.config import STDIN, EmbedConfig, LaunchConfig

logger = logging.getLogger(__name__)


@config_command("embed")
def embed_command(ctx: click.Context, config: EmbedConfig, launch: LaunchConfig) -> None:
    """Write the embeddings of sequences to an HDF5 file.

    The backend decides whether INPUT must be DNA or protein. The rows of the file have the order
    and the ids of the input.

    \b
    Examples:
      virnucpro embed proteins.faa --backend esm2 \\
        --weights facebook/esm2_t33_650M_UR50D -o proteins.h5
      virnucpro embed genes.fasta --backend dnabert-s \\
        --weights models/DNABERT-S -o genes.h5
    """
    hide_other_gpus(launch.gpus)
    path = config.output_path
    settled = settle_output(config, path, used=path.exists(), may_ask=config.input != STDIN)
    if settled is None:
        return
    leave_to_launch(ctx, settled, launch, force=settled.force and not config.force)
    from virnucpro import embed
    from virnucpro.cli.progress import shown_progress

    with shown_progress(EmbedDirectory(path).metrics_path, wanted=wants_progress(ctx, launch)):
        embed(settled)
    logger.info("embeddings: %s", path)

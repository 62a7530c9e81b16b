"""`virnucpro merge`: one run from the shares of predict --shard."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.starting import is_quiet
from virnucpro.cli.terminal import echo_summary
from virnucpro.config import MergeConfig, SummaryConfig


@config_command("merge", short_help="Make one run from the shares of predict --shard.")
def merge_command(ctx: click.Context, config: MergeConfig, summary: SummaryConfig) -> None:
    """Make one run from the shares of predict --shard.

    The results are those of a run that embedded everything itself. No GPU and no weights are
    needed, but the classifier must be where the shares found it.

    \b
    Example:
      virnucpro predict contigs.fa -m mini --shard 1/2 -o share_1
      virnucpro predict contigs.fa -m mini --shard 2/2 -o share_2
      virnucpro merge share_1 share_2 -o contigs_predictions
    """
    from virnucpro import merge

    result = merge(config)
    echo_summary(result.directory, as_json=summary.json, quiet=is_quiet(ctx))

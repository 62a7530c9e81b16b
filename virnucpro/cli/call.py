"""`virnucpro call`: another rule for the calls of a finished run."""

from __future__ import annotations

import click

from virnucpro.cli.options import config_command
from virnucpro.cli.starting import is_quiet
from virnucpro.cli.terminal import echo_summary
from virnucpro.config import CallConfig, SummaryConfig


@config_command("call", short_help="Call the records of a finished run again.")
def call_command(ctx: click.Context, config: CallConfig, summary: SummaryConfig) -> None:
    """Call the records of a finished run again, by another rule.

    The command replaces records.tsv, viral.fasta and the calls in run.json. The scores stay, so no
    model is needed. Without --threshold, --max-fdr or --preset, the rule is the default one.

    \b
    Examples:
      virnucpro call contigs_predictions --max-fdr 0.05
      virnucpro call contigs_predictions --viral-share 0.02 --conservative
    """
    from virnucpro import call

    result = call(config)
    echo_summary(
        result.directory, as_json=summary.json, quiet=is_quiet(ctx), seconds=result.seconds
    )

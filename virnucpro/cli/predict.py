"""`virnucpro predict`: every option of the fork, and what it means today."""

from __future__ import annotations

import logging

import click

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.options import (
    ConfigFlag,
    config_command,
    given_options,
    hide_other_gpus,
    is_quiet,
    leave_to_launch,
    require_classifier,
    settle_output,
    wants_progress,
)
from virnucpro.cli.progress import shown_progress
from virnucpro.cli.terminal import echo_summary
from virnucpro.config import STDIN, LaunchConfig, PredictConfig, SummaryConfig
from virnucpro.errors import IncompleteError
from virnucpro.legacy.options import FORK_OPTIONS, ForkOption
from virnucpro.runtime.environment import is_main_process, reads_settings_first
from virnucpro.runtime.logs import set_console_level

logger = logging.getLogger(__name__)


def _make_fork_param(option: ForkOption) -> click.Option:
    if option.sets is not None:
        return ConfigFlag(option.names[0], option.sets, group="General", hidden=True)
    if option.takes_number:
        return click.Option(option.names, type=int, hidden=True)
    return click.Option(option.names, is_flag=True, default=None, hidden=True)


@config_command("predict", extra=[_make_fork_param(option) for option in FORK_OPTIONS])
def predict_command(
    ctx: click.Context, config: PredictConfig, launch: LaunchConfig, summary: SummaryConfig
) -> None:
    """Call every record of INPUT viral or not.

    The output directory gets records.tsv, with the score and the call of each record, and
    viral.fasta, with the viral records. Each GPU gets its own process. docs/clusters.md explains
    how to use several machines.

    \b
    Examples:
      virnucpro predict contigs.fasta --model-type mini
      virnucpro predict contigs.fasta
      virnucpro predict reads.fastq.gz -m 300 -o results
      virnucpro predict contigs.fasta -m custom -p my.safetensors -e 400
      virnucpro predict contigs.fasta --resume
      zcat *.fa.gz | virnucpro predict - -o results
    """  # noqa: D301 (click reads the \b)
    verbose = ctx.params["verbose"]
    if verbose is not None:
        set_console_level(logging.DEBUG if verbose else logging.ERROR)
    _note_options_without_meaning(ctx)
    hide_other_gpus(launch.gpus)
    require_classifier(config)
    layout = RunDirectory(config.resolved_output_dir, config.stem)
    settled = settle_output(
        config, layout.path, used=layout.is_used(), may_ask=STDIN not in config.inputs
    )
    if settled is None:
        return
    leave_to_launch(ctx, settled, launch, force=settled.force and not config.force)
    from virnucpro import predict, predict_shard

    with shown_progress(layout.metrics_path, wanted=wants_progress(ctx, launch)):
        if settled.shard is not None:
            predict_shard(settled)
            logger.info("share %s is done; virnucpro merge makes the results", settled.shard)
            return
        result = predict(settled)
    if is_main_process():
        echo_summary(result.directory, as_json=summary.json, quiet=is_quiet(ctx))
    if result.num_unscored_frames:
        raise IncompleteError(
            f"{result.num_unscored_frames} open frames do not fit the memory of a device; their "
            "records say out_of_memory in records.tsv. Use a device with more, and --resume"
        )


def _note_options_without_meaning(ctx: click.Context) -> None:
    given = given_options(ctx)
    for option in FORK_OPTIONS:
        name = next(name for name in option.names if name.startswith("--")).partition("/")[0]
        if option.why and name[2:].replace("-", "_") in given and reads_settings_first():
            logger.warning("%s has no effect any more: %s", name, option.why)

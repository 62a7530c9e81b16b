"""`virnucpro predict`: every option of the fork, and what it means today."""

from __future__ import annotations

import dataclasses
import json
import logging

import click

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.options import ConfigFlag, config_command, given_options
from virnucpro.cli.starting import (
    hide_other_gpus,
    is_quiet,
    leave_to_launch,
    require_classifier,
    require_single_process,
    settle_output,
    wants_progress,
)
from virnucpro.cli.terminal import echo, echo_summary, echo_wrapped
from virnucpro.config import STDIN, LaunchConfig, PredictConfig, SummaryConfig
from virnucpro.errors import IncompleteError, count, format_seconds
from virnucpro.legacy.options import FORK_OPTIONS, ForkOption
from virnucpro.runtime.environment import is_main_process, reads_settings_first
from virnucpro.runtime.logs import set_console_level

logger = logging.getLogger(__name__)


def _make_fork_param(option: ForkOption) -> click.Option:
    if option.sets is not None:
        return ConfigFlag(option.names[0], option.sets, group="General", hidden=True)
    if option.takes_number:
        return click.Option(option.names, type=int, hidden=True)
    # None tells a flag that nobody gave from one that was turned off.
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
      virnucpro predict contigs.fasta --dry-run
      virnucpro predict contigs.fasta --resume
      zcat *.fa.gz | virnucpro predict - -o results
    """
    # The fork's option stands behind the command; None means that nobody gave it.
    verbose = ctx.params["verbose"]
    if verbose is not None:
        set_console_level(logging.DEBUG if verbose else logging.ERROR)
    _note_options_without_meaning(ctx)
    # Before anything imports torch, and before anything counts GPUs.
    hide_other_gpus(launch.gpus)
    # Before anybody is asked anything: a run that cannot begin must not offer to overwrite one.
    require_classifier(config)
    # Before the output is looked at, because a dry run writes nothing there.
    if config.dry_run:
        require_single_process(ctx)
        _echo_estimate(config, launch, as_json=summary.json)
        return
    layout = RunDirectory(config.resolved_output_dir, config.stem, config.prefix)
    settled = settle_output(
        config, layout.output_path, used=layout.is_used(), may_ask=STDIN not in config.inputs
    )
    if settled is None:
        return
    # The processes read the command line again, which lacks what the user has just answered.
    leave_to_launch(ctx, settled, launch, force=settled.force and not config.force)
    from virnucpro import predict, predict_shard
    from virnucpro.cli.progress import shown_progress
    from virnucpro.reports.record_results import summarize_run

    with shown_progress(layout.metrics_path, wanted=wants_progress(ctx, launch)):
        if settled.shard is not None:
            predict_shard(settled)
            logger.info("share %s is done; virnucpro merge makes the results", settled.shard)
        else:
            result = predict(settled)
    if settled.shard is not None:
        if summary.json and is_main_process():
            echo(json.dumps(summarize_run(layout, is_share=True), indent=2))
        return
    if is_main_process():
        echo_summary(result.directory, as_json=summary.json, quiet=is_quiet(ctx))
    # Last, because the results are whole but for these frames.
    if result.num_unscored_frames:
        raise IncompleteError(
            f"{count(result.num_unscored_frames, 'frame')} without a score, because the memory of "
            "a device is too small; in records.tsv, their records have the reason out_of_memory. "
            "Use a device with more memory"
        )


def _echo_estimate(config: PredictConfig, launch: LaunchConfig, *, as_json: bool) -> None:
    from virnucpro.runtime.launching import choose_num_processes
    from virnucpro.workflows.dry_run import estimate_run

    found = estimate_run(
        config, choose_num_processes(config.device, launch.num_processes, launch.gpus)
    )
    if as_json:
        echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    echo_wrapped(
        "input        ",
        f"{count(found.num_records, 'record')}, {count(found.num_chunks, 'chunk')}, "
        + count(found.num_rows, found.name_of_row),
    )
    for one in found.passes:
        echo_wrapped(
            f"{one.name:12} ",
            f"{count(one.num_distinct, 'distinct sequence')}, "
            f"{count(one.num_tokens, 'token')}, "
            f"{one.tokens_per_s:,.0f} tokens/s ({one.speed_source}): "
            f"{format_seconds(one.seconds)}, {one.device_bytes / 2**30:.1f} GiB on the device",
        )
    echo_wrapped("processes    ", f"{found.num_processes}, each on {found.computing}")
    echo(f"host memory  {found.host_bytes / 2**30:.1f} GiB")
    # Not wrapped: a path may have spaces, and people copy it.
    echo(f"disk         {found.disk_bytes / 1e6:,.1f} MB in {config.resolved_output_dir}")
    echo(f"time         about {format_seconds(found.seconds)}")
    for name in ("screen", "shard"):
        if getattr(config, name):
            echo(f"These figures are for a run without --{name}")
    if found.card_seconds:
        # Measured for the published models only.
        cards = [f"{card} {format_seconds(one)}" for card, one in found.card_seconds.items()]
        text = f"{cards[0]}, estimated: {', '.join(cards[1:])}; for the models alone"
        echo_wrapped("on one card  ", text)


def _note_options_without_meaning(ctx: click.Context) -> None:
    given = given_options(ctx)
    for option in FORK_OPTIONS:
        name = next(name for name in option.names if name.startswith("--")).partition("/")[0]
        if option.why and name[2:].replace("-", "_") in given and reads_settings_first():
            logger.warning("%s has no effect any more: %s", name, option.why)

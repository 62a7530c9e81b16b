"""`virnucpro predict`: every option of the fork, and what it means today."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.options import (
    LAUNCH_OPTIONS,
    backend_options,
    budget_options,
    classifier_options,
    compute_options,
    given_options,
    hide_other_gpus,
    inputs_argument,
    launch_options,
    leave_to_launch,
    predict_settings,
    require_classifier,
    settle_output,
    wants_progress,
)
from virnucpro.cli.progress import shown_progress
from virnucpro.config import STDIN, PredictConfig
from virnucpro.errors import IncompleteError, UsageError
from virnucpro.runtime.environment import reads_settings_first
from virnucpro.runtime.logs import set_console_level

if TYPE_CHECKING:
    from virnucpro.reports.run_results import PredictResult

logger = logging.getLogger(__name__)

_WITHOUT_MEANING = {
    "batch_size": "--batch-size: the classifier computes in blocks of one size, so that a score "
    "never depends on it",
    "num_workers": "--num-workers: scoring needs no workers (--dataloader-workers sets those of "
    "the embedding passes)",
    "threads": "--threads: translating is one fast pass, and nothing is merged",
    "cuda_streams": "--cuda-streams: copying always overlaps with computing",
    "persistent_models": "--persistent-models: each model is loaded once in a run",
    "v1_fallback": "--v1-fallback: there is one way of computing",
}
"""Options that are accepted for the fork's users, and why nothing depends on them."""

PRESETS = {"relaxed": 0.1, "conservative": 0.01}
"""The bounds on the expected false discovery rate that options of these names stand for."""

_OTHERWISE_USED = LAUNCH_OPTIONS | {
    "conservative",
    "force_resume",
    "no_progress",
    "parallel",
    "relaxed",
    "v1_attention",
    "verbose",
}
"""Options that are no field of PredictConfig by themselves."""


@click.command("predict")
@inputs_argument
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Results; required for several inputs or -.  [default: {input}_predictions]",
)
@classifier_options
@click.option(
    "--max-fdr",
    type=float,
    metavar="RATE",
    help="Instead, call as many as keep the expected false discovery rate within this.",
)
@click.option("--relaxed", is_flag=True, help=f"The same as --max-fdr {PRESETS['relaxed']}.")
@click.option(
    "--conservative", is_flag=True, help=f"The same as --max-fdr {PRESETS['conservative']}."
)
@click.option(
    "--viral-share",
    type=float,
    metavar="SHARE",
    help="Of viral records in INPUT, for probabilities.  [default: the classifier's]",
)
@click.option("--resume", is_flag=True, help="Go on with what an earlier run has finished.")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output directory.")
@click.option("-k", "--keep-intermediate", is_flag=True, help="Also write chunks and frames.")
@backend_options
@compute_options
@launch_options
@click.option("--parallel", is_flag=True, help="Use all GPUs, which is the default.")
@budget_options
@click.option("--pin-memory", is_flag=True, help="Pin host memory.  [default: on a GPU]")
@click.option(
    "--cache-clear-interval",
    type=int,
    metavar="BATCHES",
    default=PredictConfig.cache_clear_interval,
    show_default=True,
    help="Clear CUDA's cache so often; 0: never.",
)
@click.option(
    "--expandable-segments/--no-expandable-segments",
    default=PredictConfig.expandable_segments,
    help="Against fragmented GPU memory.  [default: on]",
)
@click.option(
    "--skip-checkpoint-validation", is_flag=True, help="Trust finished parts when resuming."
)
@click.option(
    "--force-resume", is_flag=True, help="The same as --resume: damaged parts are redone."
)
@click.option("--verbose/--quiet", default=None, help="As before the command.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.option("--v1-attention", is_flag=True, help="The same as --attention eager.")
@click.option("--v1-fallback", is_flag=True, help="No effect.")
@click.option("-b", "--batch-size", type=int, metavar="N", help="No effect.")
@click.option("-w", "--num-workers", type=int, metavar="N", help="No effect.")
@click.option("-t", "--threads", "--merge-threads", type=int, metavar="N", help="No effect.")
@click.option("--cuda-streams/--no-cuda-streams", default=True, help="No effect.")
@click.option("--persistent-models/--no-persistent-models", help="No effect.")
@click.pass_context
def predict_command(ctx: click.Context, /, verbose: bool | None, **_: Any) -> None:
    """Call every record of INPUT viral or not.

    INPUT is FASTA or FASTQ, plain or compressed (gz, bz2, xz, zst), or - for
    standard input. Results go to the output directory: records.tsv has every
    record with its score and call, viral.fasta the viral ones.

    \b
    Examples:
      virnucpro predict contigs.fasta --model-type mini
      virnucpro predict contigs.fasta
      virnucpro predict reads.fastq.gz -m 300 -o results
      virnucpro predict contigs.fasta -m custom -p my.safetensors -e 400
      virnucpro predict contigs.fasta --resume
      zcat *.fa.gz | virnucpro predict - -o results

    A process is started for each GPU. Several machines: docs/clusters.md.
    """  # noqa: D301 (click reads the \b)
    if verbose is not None:
        set_console_level(logging.DEBUG if verbose else logging.ERROR)
    config = make_config(ctx)
    _note_options_without_meaning(ctx)
    hide_other_gpus(ctx.params["gpus"])
    require_classifier(config)
    layout = RunDirectory(config.resolved_output_dir, config.stem)
    settled = settle_output(
        config, layout.path, used=layout.is_used(), may_ask=STDIN not in config.inputs
    )
    if settled is None:
        return
    leave_to_launch(ctx, settled, force=settled.force and not config.force)
    from virnucpro import predict

    with shown_progress(layout.metrics_path, wanted=wants_progress(ctx)):
        result = predict(settled)
    _report(result)
    if result.num_unscored_frames:
        raise IncompleteError(
            f"{result.num_unscored_frames} open frames do not fit the memory of a device; their "
            "records say out_of_memory in records.tsv. Use a device with more, and --resume"
        )


def make_config(ctx: click.Context) -> PredictConfig:
    """Return the run's settings: the command line's before the YAML file's before the defaults."""
    given = given_options(ctx)
    if "v1_attention" in given:
        if "attention" in given:
            raise UsageError("--v1-attention means --attention eager; give one of the two")
        given["attention"] = "eager"
    given |= _choose_max_fdr(given)
    if "force_resume" in given:
        given["resume"] = True
    apart = _WITHOUT_MEANING.keys() | _OTHERWISE_USED
    fields = {name: value for name, value in given.items() if name not in apart}
    return PredictConfig(**predict_settings(ctx, fields))


def _choose_max_fdr(given: dict[str, Any]) -> dict[str, float]:
    """Return what `--max-fdr`, or the preset that was given, sets."""
    named = [name for name in PRESETS if name in given]
    ways = [f"--{name.replace('_', '-')}" for name in (*named, "max_fdr") if name in given]
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} all set the false discovery rate; give one")
    return {"max_fdr": PRESETS[named[0]]} if named else {}


def _note_options_without_meaning(ctx: click.Context) -> None:
    given = given_options(ctx)
    for name, text in _WITHOUT_MEANING.items():
        if name in given and reads_settings_first():
            logger.warning("no longer of any effect: %s", text)


def _report(result: PredictResult) -> None:
    logger.info(
        "%s records in %.0f s: %s viral, %s others, %s without a call",
        f"{result.num_records:,}",
        result.seconds,
        f"{result.num_virus:,}",
        f"{result.num_others:,}",
        f"{result.num_none:,}",
    )
    logger.info("results: %s", result.output_dir)

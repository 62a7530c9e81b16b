"""`virnucpro check-precision`: what another precision than float32 changes on one's own input."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.checkpoints.run_directory import METRICS_NAME
from virnucpro.cli.options import (
    backend_options,
    classifier_options,
    compute_options,
    given_options,
    inputs_argument,
    predict_settings,
    require_classifier,
    wants_progress,
)
from virnucpro.cli.progress import shown_progress
from virnucpro.config import PredictConfig
from virnucpro.errors import UsageError
from virnucpro.runtime.environment import num_processes

if TYPE_CHECKING:
    from virnucpro.workflows.check_precision import PrecisionCheck, ScoreDifference

_OWN_OPTIONS = ("as_json", "no_progress", "num_records", "seed")


@click.command("check-precision", short_help="Say what a precision changes on your input.")
@inputs_argument
@click.option(
    "--sample",
    "num_records",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="Records to draw, at random over the whole input.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the drawing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@classifier_options
@backend_options
@compute_options
@click.option("--no-progress", is_flag=True, help="Show no progress.")
@click.pass_context
def check_precision_command(
    ctx: click.Context, /, num_records: int, seed: int, as_json: bool, **_: Any
) -> None:
    """Compare a precision with float32 on a sample of INPUT.

    Records are drawn at random, embedded and scored as predict does, in float32
    and in --precision, and compared: embeddings, scores, and the calls that would
    flip. Nothing is kept. When not to use a precision: docs/precision.md.

    \b
    Examples:
      virnucpro check-precision contigs.fasta
      virnucpro check-precision contigs.fasta --precision fp8 --sample 1000
    """  # noqa: D301 (click reads the \b)
    if num_processes() > 1:
        raise UsageError("a precision is checked in one process; start the command by itself")
    fields = {name: value for name, value in given_options(ctx).items() if name not in _OWN_OPTIONS}
    with tempfile.TemporaryDirectory(prefix="virnucpro-precision-") as scratch:
        config = PredictConfig(**predict_settings(ctx, fields), output_dir=Path(scratch))
        require_classifier(config)
        from virnucpro.workflows.check_precision import check_precision

        with shown_progress(Path(scratch, METRICS_NAME), wanted=wants_progress(ctx)):
            check = check_precision(config, num_records=num_records, seed=seed)
    if as_json:
        click.echo(json.dumps(asdict(check), indent=2))
        return
    for line in _describe(check):
        click.echo(line)


def _describe(check: PrecisionCheck) -> Iterator[str]:
    yield (
        f"{check.precision} against fp32 on {check.device}: {check.num_records:,} of "
        f"{check.num_input_records:,} records, seed {check.seed}"
    )
    yield ""
    yield f"{'embeddings':<20}{'sequences':>10}{'cosine, min':>13}{'median':>11}{'deviation':>11}"
    for found in check.embeddings:
        name = f"{found.backend} ({found.precision})"
        yield (
            f"{name:<20}{found.num_sequences:>10,}{found.min_cosine:>13.7f}"
            f"{found.median_cosine:>11.7f}{found.largest_deviation:>11.1e}"
        )
    yield ""
    yield f"{'scores':<20}{'compared':>10}{'largest':>13}{'median':>11}{'flips':>11}"
    for level in check.scores:
        yield (
            f"{level.level:<20}{level.num_scored:>10,}{level.largest:>13.1e}{level.median:>11.1e}"
            f"{level.num_flips:>11,}"
        )
    yield ""
    if not any(level.num_flips for level in check.scores):
        yield "No call would flip."
        return
    for level in check.scores:
        yield from _describe_flips(level, check.precision)


def _describe_flips(level: ScoreDifference, precision: str) -> Iterator[str]:
    first = f"; the first {len(level.flips)}" if level.num_flips > len(level.flips) else ""
    yield f"{level.level}: {level.num_flips:,} of {level.num_scored:,} calls would flip{first}"
    for flip in level.flips:
        yield f"  {flip.id}: {flip.reference_score:.7f} in fp32, {flip.score:.7f} in {precision}"

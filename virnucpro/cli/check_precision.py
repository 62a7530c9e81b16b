"""`virnucpro check-precision`: what another precision than float32 changes on one's own input."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.checkpoints.run_directory import METRICS_NAME
from virnucpro.cli.options import config_command
from virnucpro.cli.starting import require_classifier, require_single_process, wants_progress
from virnucpro.cli.terminal import echo, format_table
from virnucpro.config import CheckPrecisionConfig, ProgressConfig
from virnucpro.errors import count

if TYPE_CHECKING:
    from virnucpro.workflows.check_precision import PrecisionCheck, ScoreDifference


@config_command("check-precision", short_help="Show what a precision changes on your input.")
def check_precision_command(
    ctx: click.Context, config: CheckPrecisionConfig, progress: ProgressConfig
) -> None:
    """Compare a precision with float32 on a sample of INPUT.

    The command draws records at random. It embeds and scores them as predict does, once in float32
    and once in --precision. The report compares embeddings and scores, and lists the calls that
    would change. The command keeps no files. docs/precision.md says when not to use a precision.

    \b
    Examples:
      virnucpro check-precision contigs.fasta
      virnucpro check-precision contigs.fasta --precision fp8 --num-records 1000
    """
    require_single_process(ctx)
    # As in predict: whatever is wrong should show before anything is read.
    require_classifier(config)
    # Elsewhere than a run would be, because a check must not touch the results of one.
    with tempfile.TemporaryDirectory(prefix="virnucpro-precision-") as scratch:
        from virnucpro.cli.progress import shown_progress
        from virnucpro.workflows.check_precision import check_precision

        config = dataclasses.replace(config, output_dir=Path(scratch))
        with shown_progress(Path(scratch, METRICS_NAME), wanted=wants_progress(ctx, progress)):
            check = check_precision(config)
    if config.json:
        echo(json.dumps(dataclasses.asdict(check), indent=2))
        return
    for line in _describe(check):
        echo(line)


def _describe(check: PrecisionCheck) -> Iterator[str]:
    from virnucpro.workflows.check_precision import MIN_COSINE

    yield (
        f"{check.precision} against fp32 on {check.device}: {check.num_records:,} of "
        f"{count(check.num_input_records, 'record')}, seed {check.seed}"
    )
    yield ""
    yield format_table(
        ("embeddings", "sequences", "cosine, min", "median", "deviation"),
        [
            (
                f"{found.backend} ({found.precision})",
                f"{found.num_sequences:,}",
                f"{found.min_cosine:.7f}",
                f"{found.median_cosine:.7f}",
                f"{found.largest_deviation:.1e}",
            )
            for found in check.embeddings
        ],
    )
    for found in check.embeddings:
        if found.min_cosine < MIN_COSINE:
            yield (
                f"{found.precision} is not for these weights of {found.backend}: a cosine is under "
                f"{MIN_COSINE}. Choose another --precision."
            )
    yield ""
    yield format_table(
        ("scores", "compared", "largest", "median", "flips"),
        [
            (
                level.level,
                f"{level.num_scored:,}",
                f"{level.largest:.1e}",
                f"{level.median:.1e}",
                f"{level.num_flips:,}",
            )
            for level in check.scores
        ],
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

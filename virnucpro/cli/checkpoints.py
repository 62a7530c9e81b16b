"""`virnucpro checkpoints`: the contents of files of embeddings, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from virnucpro.checkpoints.run_directory import find_run, suggest_runs
from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo
from virnucpro.config import OPEN_RULE, FrameRule, ShowCheckpointsConfig, VerifyCheckpointsConfig
from virnucpro.errors import CheckpointError, UsageError, count
from virnucpro.sequences.records import NAME_OF_ROW

if TYPE_CHECKING:
    from virnucpro.workflows.checkpoints import FileSummary, RunSummary

NO_SUCH_PLACE = 3
"""The exit code if there is nothing to check, as in the fork."""


@click.group("checkpoints")
def checkpoints_command() -> None:
    """Describe and check files of embeddings."""


@config_command("checkpoints show", short_help="Describe checkpoints and their contents.")
def show_command(ctx: click.Context, config: ShowCheckpointsConfig) -> None:
    """Describe checkpoints: version, identity, number of rows, whether they are done, size.

    \b
    Examples:
      virnucpro checkpoints show contigs_predictions
      virnucpro checkpoints show old/output_1_ESM.pt --json
    """
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.workflows.checkpoints import summarize_files, summarize_progress

    path = config.path
    if not _is_place(path):
        raise UsageError(f"{path}: no such file or directory{suggest_runs(path)}")
    run = summarize_progress(path, digests=False)
    dims = EmbeddingDims(config.dna_dim, config.protein_dim)
    summaries = list(summarize_files(path, dims, digests=False))
    if config.json:
        document = {
            "path": str(path),
            "run": asdict(run) if run else None,
            "files": [asdict(one) | {"path": str(one.path)} for one in summaries],
        }
        echo(json.dumps(document, indent=2))
        return
    if run is not None:
        _echo_run(path, run)
    for summary in summaries:
        _echo_file(summary)
    # Of one file only: all parts of a run have the same identity.
    if path.is_file() and summaries[0].identity is not None:
        for name, value in asdict(summaries[0].identity).items():
            echo(f"  {name}: {value}")
    if not summaries:
        echo(f"{path}: holds no checkpoints")


@config_command("checkpoints verify", short_help="Check checkpoints completely.")
def verify_command(ctx: click.Context, config: VerifyCheckpointsConfig) -> None:
    """Check checkpoints completely: digests, rows, finite values.

    Exit code 0: all checkpoints are good; 1: some are damaged or unfinished; 3: PATH does not
    exist, or holds neither checkpoints nor a run. The command changes nothing. `predict --resume`
    puts damaged and unfinished parts aside and computes them again.

    \b
    Example:
      virnucpro checkpoints verify contigs_predictions
    """
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.workflows.checkpoints import summarize_files

    path = config.path
    # An exit code of its own, which click's check of paths could not give.
    if not _is_place(path):
        echo(f"{path}: no such file or directory", err=True)
        ctx.exit(NO_SUCH_PLACE)
    is_good_run = echo_run_errors(path, digests=True)
    dims = EmbeddingDims(config.dna_dim, config.protein_dim)
    num_files, num_bad = echo_verdicts(summarize_files(path, dims, digests=True))
    # A run of records that are all too short has no checkpoints, and that is right.
    if is_good_run and not (num_files or find_run(path).is_run()):
        echo(f"{path}: holds neither checkpoints nor a run", err=True)
        ctx.exit(NO_SUCH_PLACE)
    ctx.exit(0 if is_good_run and not num_bad else 1)


checkpoints_command.add_command(show_command)
checkpoints_command.add_command(verify_command)


def _is_place(path: Path) -> bool:
    return path.exists() or bool(find_run(path).prefix)


def echo_run_errors(path: Path, *, digests: bool) -> bool:
    """Print what is wrong with the frame store of a run, and return whether nothing is."""
    from virnucpro.workflows.checkpoints import summarize_progress

    try:
        run = summarize_progress(path, digests=digests)
        errors = run.errors if run else []
    # A damaged store is a finding here and no reason to stop: the parts are checked as well.
    except CheckpointError as error:
        errors = [str(error)]
    for text in errors:
        echo(f"bad  {text}")
    return not errors


def echo_verdicts(summaries: Iterable[FileSummary]) -> tuple[int, int]:
    """Print a line for each file and a total, and return how many files there are and are bad."""
    # A line at a time, because reading all files may take long.
    num_files = num_bad = 0
    for summary in summaries:
        num_files += 1
        num_bad += summary.error is not None
        reason = "" if summary.error is None else f": {summary.error}"
        echo(f"{'bad' if reason else 'ok '}  {summary.path}{reason}")
        for note in summary.notes:
            echo(f"     note: {note}")
    echo(f"{num_files - num_bad:,} of {count(num_files, 'checkpoint')} can be used")
    return num_files, num_bad


def _echo_run(path: Path, run: RunSummary) -> None:
    kind = FrameRule.parse(run.frame_rule).kind
    # Only another rule than the original's is named.
    rule = "" if run.frame_rule == str(OPEN_RULE) else f", frame rule {run.frame_rule}"
    echo(
        f"{path}: a run of {count(run.num_frames, NAME_OF_ROW[kind])}, chunks of "
        f"{run.chunk_length_bp:,} bp{rule}"
    )
    for alphabet, finished in run.finished.items():
        wanted = count(run.wanted[alphabet], "distinct sequence")
        echo(f"  {alphabet}: {finished:,} of {wanted} embedded")
    for error in run.errors:
        echo(f"  bad: {error}")


def _echo_file(summary: FileSummary) -> None:
    echo(str(summary.path))
    version = "unknown version" if summary.version is None else f"version {summary.version}"
    rows = "" if summary.num_rows is None else f"{count(summary.num_rows, 'row')}, "
    dims = ", ".join(f"{name} {dim}" for name, dim in summary.dims.items())
    echo(
        f"  {version} ({summary.what}): {rows}{dims or 'unknown dimensions'}, precision "
        f"{summary.precision}; {summary.num_bytes:,} bytes, "
        f"{'marked done' if summary.is_marked else 'no .done'}"
    )
    for note in summary.notes:
        echo(f"  note: {note}")
    if summary.error is not None:
        echo(f"  bad: {summary.error}")

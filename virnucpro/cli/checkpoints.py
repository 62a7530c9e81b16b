"""`virnucpro checkpoints`: what files of embeddings are, and whether they are complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from virnucpro.workflows.checkpoints import FileSummary, RunSummary

NO_SUCH_PLACE = 3
"""The exit code if there is nothing to check, which is also the fork's."""


def dims_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the numbers in the embeddings of older files."""
    text = "Of older files, which do not tell."
    dna = click.option("--dna-dim", type=int, default=768, show_default=True, help=text)
    protein = click.option("--protein-dim", type=int, default=2560, show_default=True, help=text)
    return dna(protein(command))


@click.group("checkpoints")
def checkpoints_command() -> None:
    """Look at files of embeddings, and check them."""


@checkpoints_command.command("show", short_help="Say what checkpoints are and hold.")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@dims_options
def show_command(path: Path, as_json: bool, dna_dim: int, protein_dim: int) -> None:
    """Say what a checkpoint is: version, identity, rows, whether it is done, size.

    PATH is a part, a run directory, any directory of checkpoints, or a file of
    features (.pt, .h5) that an older program wrote.

    \b
    Examples:
      virnucpro checkpoints show contigs_predictions
      virnucpro checkpoints show old/output_1_ESM.pt --json
    """  # noqa: D301 (click reads the \b)
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.workflows.checkpoints import summarize_files, summarize_run

    run = summarize_run(path)
    summaries = list(summarize_files(path, EmbeddingDims(dna_dim, protein_dim), digests=False))
    if as_json:
        document = {
            "path": str(path),
            "run": asdict(run) if run else None,
            "files": [summary.to_json() for summary in summaries],
        }
        click.echo(json.dumps(document, indent=2))
        return
    if run is not None:
        _echo_run(path, run)
    for summary in summaries:
        _echo_file(summary)
    if path.is_file() and summaries[0].identity is not None:
        for name, value in asdict(summaries[0].identity).items():
            click.echo(f"  {name}: {value}")
    if not summaries:
        click.echo(f"{path}: holds no checkpoints")


@checkpoints_command.command("verify")
@click.argument("path", type=click.Path(path_type=Path))
@dims_options
@click.pass_context
def verify_command(ctx: click.Context, /, path: Path, dna_dim: int, protein_dim: int) -> None:
    """Read checkpoints as a whole: digests, rows, finite values.

    Exit code 0: all are whole; 1: some are not; 3: there is no PATH. Nothing is
    changed; `predict --resume` sets damaged parts aside and computes them again.

    \b
    Example:
      virnucpro checkpoints verify contigs_predictions
    """  # noqa: D301 (click reads the \b)
    from virnucpro.legacy.steps import EmbeddingDims
    from virnucpro.workflows.checkpoints import summarize_files, summarize_run

    if not path.exists():
        click.echo(f"{path}: no such file or directory", err=True)
        ctx.exit(NO_SUCH_PLACE)
    run = summarize_run(path)
    for error in run.errors if run else []:
        click.echo(f"bad  {error}")
    is_whole = echo_verdicts(
        summarize_files(path, EmbeddingDims(dna_dim, protein_dim), digests=True)
    )
    ctx.exit(0 if is_whole and not (run and run.errors) else 1)


def echo_verdicts(summaries: Iterable[FileSummary]) -> bool:
    """Print a line for each file and a total, and return whether all files can be used."""
    num_files = num_bad = 0
    for summary in summaries:
        num_files += 1
        num_bad += summary.error is not None
        reason = "" if summary.error is None else f": {summary.error}"
        click.echo(f"{'bad' if reason else 'ok '}  {summary.path}{reason}")
        for note in summary.notes:
            click.echo(f"     note: {note}")
    click.echo(f"{num_files - num_bad:,} of {num_files:,} checkpoints can be used")
    return not num_bad


def _echo_run(path: Path, run: RunSummary) -> None:
    click.echo(
        f"{path}: a run of {run.num_frames:,} open frames, chunks of {run.chunk_length_bp} bp"
    )
    for alphabet, finished in run.finished.items():
        click.echo(f"  {alphabet}: {finished:,} of {run.wanted[alphabet]:,} sequences finished")
    for error in run.errors:
        click.echo(f"  bad: {error}")


def _echo_file(summary: FileSummary) -> None:
    click.echo(summary.path)
    version = "unknown version" if summary.version is None else f"version {summary.version}"
    rows = "" if summary.num_rows is None else f"{summary.num_rows:,} rows, "
    dims = ", ".join(f"{name} {dim}" for name, dim in summary.dims.items())
    click.echo(
        f"  {version} ({summary.what}): {rows}{dims or 'unknown dimensions'}, precision "
        f"{summary.precision}; {summary.num_bytes:,} bytes, "
        f"{'marked done' if summary.is_marked else 'no .done'}"
    )
    for note in summary.notes:
        click.echo(f"  note: {note}")
    if summary.error is not None:
        click.echo(f"  bad: {summary.error}")

"""`virnucpro monitor`: the view of a run that is going on elsewhere, or has ended."""

from __future__ import annotations

import functools
import json
import threading
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console

from virnucpro.checkpoints.run_directory import METRICS_NAME
from virnucpro.cli.progress import follow
from virnucpro.cli.run_view import render
from virnucpro.errors import UsageError
from virnucpro.runtime.monitoring import RunState

_ALL_LINES = 1 << 20


@click.command("monitor")
@click.argument(
    "run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RUN_DIR"
)
@click.option("--once", is_flag=True, help="Show the present state and exit.")
@click.option("--json", "as_json", is_flag=True, help="Show the same as JSON.")
def monitor_command(run_dir: Path, once: bool, as_json: bool) -> None:
    """Show the progress of a run.

    RUN_DIR is the output directory of predict, or the .parts directory of
    embed. Any machine that sees the directory can show the run. The view
    follows the run to its end; Ctrl-C ends the view and not the run.
    """
    path = run_dir / METRICS_NAME
    if not path.is_file():
        raise UsageError(
            f"{path}: does not exist; give the output directory of `virnucpro predict`, or the "
            ".parts directory that `virnucpro embed` keeps beside its output while it runs"
        )
    state, console = RunState(path), Console()
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if not (once or as_json):
        with suppress(KeyboardInterrupt):
            follow(state, console, threading.Event(), say=say, with_warnings=True)
        return
    for _ in state.read():
        pass
    if as_json:
        click.echo(json.dumps(state.to_json(), indent=2))
        return
    for warning in state.warnings:
        say(f"Warning: {warning}")
    console.print(render(state, console.width, _ALL_LINES))

"""`virnucpro monitor`: the view of a run in another process, or of one that has ended."""

from __future__ import annotations

import functools
import json
import threading
from contextlib import suppress

import click

from virnucpro.checkpoints.run_directory import find_run, suggest_runs
from virnucpro.cli.options import config_command
from virnucpro.cli.terminal import echo
from virnucpro.config import MonitorConfig
from virnucpro.errors import UsageError

_ALL_LINES = 1 << 20


@config_command("monitor", short_help="Show the state of a run.")
def monitor_command(ctx: click.Context, config: MonitorConfig) -> None:
    """Show the state of a run, also of a run on another machine that shares the file system.

    The view follows a run in progress until the run ends. Ctrl-C stops the view, and not the run.
    """
    # Not above: `virnucpro --help` imports every command, and should be quick.
    from rich.console import Console

    from virnucpro.cli.progress import follow
    from virnucpro.cli.run_view import render
    from virnucpro.runtime.locks import may_be_held
    from virnucpro.runtime.monitoring import RunState

    run = find_run(config.run_dir)
    path = run.metrics_path
    if not path.is_file():
        raise UsageError(
            f"{path}: does not exist; give the output directory of `virnucpro predict`, the "
            "_training directory of `virnucpro train`, or the .parts directory that `virnucpro "
            f"embed` keeps beside its output while it runs{suggest_runs(config.run_dir)}"
        )
    state, console = RunState(path), Console()
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if not (config.once or config.json):
        with suppress(KeyboardInterrupt):
            may_go_on = functools.partial(may_be_held, run.lock_path)
            stop = threading.Event()
            follow(state, console, stop, say=say, may_go_on=may_go_on)
        return
    for _ in state.read():
        pass
    if config.json:
        echo(json.dumps(state.to_json(), indent=2))
        return
    for warning in state.warnings:
        say(f"Warning: {warning}")
    # All processes, because the output may be longer than a terminal, or a file.
    console.print(render(state, console.width, _ALL_LINES))

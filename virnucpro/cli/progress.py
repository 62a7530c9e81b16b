"""How a run stands, for people: one live view in a terminal, elsewhere a line now and then.

Both read the run's metrics file alone, so that `virnucpro monitor` shows on another machine what
the run itself shows.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from virnucpro.cli.run_view import describe_pass, describe_pass_end, render
from virnucpro.runtime.monitoring import RunState

logger = logging.getLogger(__name__)

_FIRST_LINE_SECONDS = 15.0
_LINE_SECONDS = 60.0


@contextmanager
def shown_progress(metrics_path: Path, *, wanted: bool) -> Iterator[None]:
    """Show the run that the body does, which writes its metrics to `metrics_path`."""
    if not wanted:
        yield
        return
    stop = threading.Event()
    state = RunState(metrics_path, since=time.time())
    follower = threading.Thread(
        target=follow,
        args=(state, Console(stderr=True), stop),
        kwargs={"say": lambda text: logger.info("%s", text)},
        name="progress",
        daemon=True,
    )
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def follow(
    state: RunState,
    console: Console,
    stop: threading.Event,
    *,
    say: Callable[[str], None],
    with_warnings: bool = False,
    seconds: float = 1.0,
) -> None:
    """Show a run until it has ended, or `stop` is set.

    Args:
        state: Of the run.
        console: Where the live view goes if that is a terminal.
        stop: Ends the following, after one last look.
        say: Takes the lines that stand for the view elsewhere.
        with_warnings: Whether to say those of the run, too; its own logging already does.
        seconds: Between two looks.
    """
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    lines = _Lines(say)
    num_warnings = 0
    with live or nullcontext():
        while True:
            is_last = stop.is_set()
            for now in state.read():
                if live is None:
                    lines.note_end(now)
            if live is None:
                lines.tell(state)
            for warning in state.warnings[num_warnings:] if with_warnings else ():
                say(f"Warning: {warning}")
            num_warnings = len(state.warnings)
            if live is not None and state.num_processes:
                live.update(_Fitting(state), refresh=True)
            if is_last or state.outcome is not None:
                return
            stop.wait(seconds)


class _Fitting:
    """The view in whatever size the terminal has at the moment."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __rich_console__(self, console: Console, options: object) -> Iterator[RenderableType]:
        # One line stays free, or a terminal would scroll with each refresh.
        yield render(self._state, console.width, console.height - 1)


class _Lines:
    """Says how a pass goes after a while, then every minute, and when it has ended."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pass: tuple[float, str | None] = (0.0, None)
        self._next = 0.0

    def note_end(self, state: RunState) -> None:
        """Say it if the latest line of the metrics has ended a pass."""
        history = state.history
        if self._pass != (history.began_at, history.pass_name):
            self._pass = (history.began_at, history.pass_name)
            self._next = history.began_at + _FIRST_LINE_SECONDS
        if self._next < math.inf and history.is_done(state.num_processes):
            self._next = math.inf
            self._say(describe_pass_end(state))

    def tell(self, state: RunState) -> None:
        """Say how the pass goes if it is time to."""
        if state.history.pass_name is not None and state.last_time >= self._next:
            self._next = state.last_time + _LINE_SECONDS
            self._say(describe_pass(state))

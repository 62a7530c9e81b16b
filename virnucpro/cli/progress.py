"""Shows how a run progresses: a live view in a terminal, elsewhere a line from time to time.

Both read only the metrics file of the run. So `virnucpro monitor` shows on another machine the same
as the run itself.
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

from virnucpro.cli.run_view import (
    describe_outcome,
    describe_pass,
    describe_pass_end,
    describe_silence,
    render,
)
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
    # From now on: the file may hold earlier runs, which a resumed run continues.
    state = RunState(metrics_path, since=time.time())
    follower = threading.Thread(
        target=follow,
        # Not on standard output, which belongs to the results.
        args=(state, Console(stderr=True), stop),
        # The run itself logs the end of each pass, in the right order.
        kwargs={"say": lambda text: logger.info("%s", text), "with_ends": False},
        name="progress",
        daemon=True,
    )
    follower.start()
    try:
        yield
    finally:
        stop.set()
        # The last lines of the view come before the summary of the command.
        follower.join()


def follow(
    state: RunState,
    console: Console,
    stop: threading.Event,
    *,
    say: Callable[[str], None],
    with_warnings: bool = False,
    with_ends: bool = True,
    may_go_on: Callable[[], bool] | None = None,
    seconds: float = 1.0,
) -> None:
    """Show a run until it has ended, has silently gone, or `stop` is set.

    Args:
        state: The run.
        console: Shows the live view if it is a terminal.
        stop: Ends the view, after one last update.
        say: Takes the lines that replace the live view elsewhere.
        with_warnings: Whether to say the warnings of the run, too; the run itself logs them.
        with_ends: Whether to say how each pass ended, and how the run ended.
        may_go_on: Asked of a run of which nothing is heard; None if it surely goes on.
        seconds: The time between two updates.
    """

    def draw() -> RenderableType:
        # One line stays free, or a terminal would scroll at each update.
        return render(state, console.width, console.height - 1) if state.num_processes else ""

    live = None
    if console.is_terminal:
        live = Live(console=console, auto_refresh=False, get_renderable=draw)
    lines = _Lines(say, with_ends=with_ends)
    num_warnings = 0
    silence = None
    with live or nullcontext():
        while True:
            # Asked before reading, so that the last lines of the metrics are still shown.
            is_gone = silence is not None and may_go_on is not None and not may_go_on()
            is_last = stop.is_set()
            # State by state, because a pass may have ended between two updates.
            for now in state.read():
                if live is None:
                    lines.say_end(now)
            if live is None:
                lines.say_progress(state)
            for warning in state.warnings[num_warnings:] if with_warnings else ():
                say(f"Warning: {warning}")
            num_warnings = len(state.warnings)
            silence = describe_silence(state)
            # The next run may have begun meanwhile.
            is_gone = is_gone and silence is not None
            if live is not None:
                live.refresh()
            if is_last or is_gone or state.outcome is not None:
                break
            stop.wait(seconds)
    # The live view says it, too.
    if live is None and with_ends and state.outcome is not None:
        say(describe_outcome(state))
    elif is_gone and state.outcome is None:
        say(
            f"{silence}, and no process holds the lock: the run was probably killed"
            if state.is_there
            else f"{silence}: embed removes them when it has finished"
        )


class _Lines:
    """Reports a pass after 15 seconds, then every minute, and when it has ended."""

    def __init__(self, say: Callable[[str], None], *, with_ends: bool) -> None:
        self._say = say
        self._with_ends = with_ends
        self._pass: tuple[float, str | None] = (0.0, None)
        self._next_at = 0.0
        self._is_silent = False

    def say_end(self, state: RunState) -> None:
        """Report the end of the pass if the latest line of the metrics is that end."""
        history = state.history
        # The time as well as the name: a resumed run has a pass of the same name again.
        if self._pass != (history.began_at, history.pass_name):
            self._pass = (history.began_at, history.pass_name)
            self._next_at = history.began_at + _FIRST_LINE_SECONDS
        if self._next_at < math.inf and history.is_done(state.num_processes):
            # The end is said once, and no line of this pass is due after it.
            self._next_at = math.inf
            if self._with_ends:
                self._say(describe_pass_end(state))

    def say_progress(self, state: RunState) -> None:
        """Report how the pass progresses if a line is due, and once if nothing is heard of it."""
        was_silent, self._is_silent = self._is_silent, describe_silence(state) is not None
        is_due = state.last_time >= self._next_at or (self._is_silent and not was_silent)
        # Of metrics that are gone, the end says all.
        if state.history.pass_name is None or not state.is_there:
            return
        if is_due and self._next_at < math.inf:
            self._next_at = state.last_time + _LINE_SECONDS
            self._say(describe_pass(state))

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
        kwargs={"say": lambda text: logger.info("%s", text), "is_own": True},
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
    is_own: bool = False,
    may_go_on: Callable[[], bool] | None = None,
    seconds: float = 1.0,
) -> None:
    """Show a run until it has ended, has silently gone, or `stop` is set.

    Args:
        state: The run.
        console: Shows the live view if it is a terminal.
        stop: Ends the view, after one last update.
        say: Takes the lines that replace the live view elsewhere, and warnings.
        is_own: Whether it is the run of this process, whose log has its warnings and all ends.
        may_go_on: Asked of a run of which nothing is heard; None if it surely goes on.
        seconds: The time between two updates.
    """

    def draw() -> RenderableType:
        # The error of this process comes next, and says more than a view of nothing.
        has_failed = is_own and state.outcome not in (None, "finished")
        has_begun = state.history.pass_name is not None or state.training is not None
        if not state.num_processes or (has_failed and not has_begun):
            return ""
        # One line stays free, or a terminal would scroll at each update.
        return render(state, console.width, console.height - 1)

    live = None
    if console.is_terminal:
        live = Live(console=console, auto_refresh=False, get_renderable=draw)
    lines = _Lines(say, is_own=is_own, is_live=live is not None)
    silence = None
    with live or nullcontext():
        while True:
            # Asked before reading, so that the last lines of the metrics are still shown.
            is_gone = silence is not None and may_go_on is not None and not may_go_on()
            is_last = stop.is_set()
            # State by state, because a pass may have ended between two updates.
            for now in state.read():
                lines.say_news(now)
            if live is None:
                lines.say_progress(state)
            else:
                live.refresh()
            silence = describe_silence(state)
            # The next run may have begun meanwhile.
            is_gone = is_gone and silence is not None
            if is_last or is_gone or state.outcome is not None:
                break
            stop.wait(seconds)
    # The live view says it, too.
    if live is None and not is_own and state.outcome is not None:
        say(describe_outcome(state))
    elif is_gone and state.outcome is None:
        say(
            f"{silence}, and no process holds the lock: the run was probably killed"
            if state.is_there
            else f"{silence}: embed removes them when it has finished"
        )


class _Lines:
    """Reports a pass after 15 seconds, then every minute, and when it has ended; and warnings."""

    def __init__(self, say: Callable[[str], None], *, is_own: bool, is_live: bool) -> None:
        self._say = say
        self._is_own = is_own
        self._is_live = is_live
        self._num_warnings = 0
        self._pass: tuple[float, str | None] = (0.0, None)
        self._next_at = 0.0
        self._is_silent = False

    def say_news(self, state: RunState) -> None:
        """Report the latest line of the metrics if it is a warning or the end of the pass."""
        before, self._num_warnings = self._num_warnings, len(state.warnings)
        if self._num_warnings > before and not self._is_own:
            self._say(f"Warning: {state.warnings[-1]}")
        history = state.history
        # The time as well as the name: a resumed run has a pass of the same name again.
        if self._pass != (history.began_at, history.pass_name):
            self._pass = (history.began_at, history.pass_name)
            self._next_at = history.began_at + _FIRST_LINE_SECONDS
        if self._next_at < math.inf and history.is_done(state.num_processes):
            # The end is said once, and no line of this pass is due after it.
            self._next_at = math.inf
            if not (self._is_own or self._is_live):
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

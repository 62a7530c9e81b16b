"""Progress bars on the terminal, one for each pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.monitoring import PassStatus, ProgressListener


@contextmanager
def progress_bars(*, wanted: bool) -> Iterator[ProgressListener | None]:
    """Give a function that shows each update, or None where there is nobody to look at them."""
    if not (wanted and sys.stderr.isatty()):
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    tasks: dict[str, rich.TaskID] = {}
    bars = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TextColumn("{task.percentage:>3.0f} %  {task.fields[rows]}"),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    def show(update: PassStatus) -> None:
        rows = f"{update.num_rows:,} of {update.total_rows:,}"
        state: dict[str, Any] = {
            "completed": update.cost,
            "total": update.total_cost,
            "rows": rows,
        }
        if update.name not in tasks:
            tasks[update.name] = bars.add_task(update.name, **state)
        bars.update(tasks[update.name], **state)

    with bars:
        yield show

"""What commands print: tables, figures of a report, and progress bars."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from virnucpro.errors import printable

if TYPE_CHECKING:
    from virnucpro.reports.record_results import PredictResult
    from virnucpro.reports.report import Section

logger = logging.getLogger(__name__)

_SHOWN = ("auroc", "auprc", "precision", "recall", "f1", "mcc", "calibration_error")


def echo(text: str, *, err: bool = False) -> None:
    """Print a text, without characters that control the terminal; every command prints by this."""
    click.echo(printable(text), err=err)


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Return a table as plain text, never cut; the first `num_left` columns are left-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < num_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=10_000, color_system=None, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def report_calls(result: PredictResult) -> None:
    """Log the numbers of calls, and how many viral records rest on few scored chunks."""
    logger.info(
        "%s records in %.0f s: %s viral, %s others, %s without a call",
        f"{result.num_records:,}",
        result.seconds,
        f"{result.num_virus:,}",
        f"{result.num_others:,}",
        f"{result.num_none:,}",
    )
    if result.num_virus_few_chunks:
        logger.info(
            "%s of %s viral calls rest on one or two scored chunks; see the columns "
            "num_open_chunks and confidence of records.tsv",
            f"{result.num_virus_few_chunks:,}",
            f"{result.num_virus:,}",
        )
    logger.info("results: %s", result.output_dir)


def echo_sections(sections: Sequence[Section]) -> None:
    """Print for each section of a report its records, and the figures with their intervals."""
    for section in sections:
        echo(
            f"{section.records}, {section.subset}: {section.num_viral:,} viral, "
            f"{section.num_others:,} others; {_describe_intervals(section)}"
        )
        for name in _SHOWN:
            value, low, high = section.estimates[name]
            text = "not defined" if math.isnan(value) else f"{value:.3f}"
            interval = "" if math.isnan(low) else f" ({low:.3f}-{high:.3f})"
            echo(f"  {name.replace('_', ' '):18} {text}{interval}")


def _describe_intervals(section: Section) -> str:
    drawn = (
        f"{section.num_viral_resampled:,} viral and {section.num_others_resampled:,} other "
        f"{section.resampled}"
    )
    if all(math.isnan(low) for _, low, _ in section.estimates.values()):
        return f"{drawn} are too few for intervals"
    return f"95 % intervals by resampling {drawn}"


@contextmanager
def counting_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """Give a function that shows by name how much is done, or None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as bars:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        yield show

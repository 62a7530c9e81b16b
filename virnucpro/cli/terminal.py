"""What commands print: tables, figures of a report, and progress bars."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from virnucpro.errors import (
    OutputError,
    count,
    count_who,
    format_seconds,
    printable,
    shorten,
    writing_remedy,
)

if TYPE_CHECKING:
    from virnucpro.checkpoints.run_directory import RunDirectory
    from virnucpro.reports.report import Section

# What a person looks at first; report.tsv has all figures.
_SHOWN = ("auroc", "auprc", "precision", "recall", "f1", "mcc", "calibration_error")
_MAX_ID_LETTERS = 41
_NUM_STAGES = 2
_LINE_LETTERS = 100
_NO_BREAK = "\u00a0"


def open_missing_streams() -> None:
    """Open /dev/null where the program was started without standard input, output or error.

    Otherwise a file that is opened later takes such a place, and gets what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It takes the lowest number that is free, which is that of the missing stream.
            stream = open(os.devnull, mode)  # noqa: SIM115, PTH123
            # For the processes of a launch.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def drop_unwritten() -> None:
    """Forget what standard output did not take. Python would try again when it ends, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text, without characters that control the terminal; every command prints by this.

    Raises:
        OutputError: Standard output goes to a file that cannot be written.
    """
    try:
        click.echo(printable(text), err=err)
    # A reader such as `head` has seen enough.
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"standard output cannot be written ({error.strerror}); {writing_remedy(error)}"
        ) from error


def echo_wrapped(label: str, text: str) -> None:
    """Print a label, and beside it a text that is broken at the width of the terminal.

    Words, such as paths, and commands between backticks stay whole, because people copy them.
    """
    # The fallback is for a terminal that does not tell, and for files.
    width = shutil.get_terminal_size((_LINE_LETTERS, 24)).columns
    whole = re.sub("`.*?`", lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.fill(
        whole,
        width,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )
    echo(lines.replace(_NO_BREAK, " "))


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Return a table as plain text, never cut; the first `num_left` columns are left-aligned."""
    # Not above: `--help` imports every command, and so this file.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < num_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Wider than any table, so that no column is cut: other programs read this text.
    text = io.StringIO()
    Console(
        file=text, width=10_000, color_system=None, markup=False, highlight=False, emoji=False
    ).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def echo_summary(
    directory: RunDirectory, *, as_json: bool, quiet: bool, seconds: float | None = None
) -> None:
    """Print what a finished run found, where its results are, and what took the time.

    Args:
        directory: The run's.
        as_json: Whether to print JSON, for programs.
        quiet: Whether to print nothing else.
        seconds: How long the command took; None for the run, with its longest stages.
    """
    from virnucpro.reports.record_results import CALLS, summarize_run

    summary = summarize_run(directory)
    if as_json:
        echo(json.dumps(summary, indent=2))
        return
    # JSON was asked for, so --quiet does not take it away.
    if quiet:
        return
    counts, rule = summary["counts"], summary["calls"]
    rows = [(call, f"{counts[call]:,}") for call in CALLS]
    rows += [(f"  {name}", f"{number:,}") for name, number in summary["reasons"].items()]
    best = [
        (
            # Made printable before it is cut, because an escape is longer than what it stands for.
            shorten(printable(one["record_id"]), _MAX_ID_LETTERS),
            f"{one['length']:,}",
            # With the digits of records.tsv.
            *("NA" if one[name] is None else str(one[name]) for name in ("score", "probability")),
            one["call"],
            one["confidence"],
        )
        for one in summary["most_viral"]
    ]
    headings = ("most viral records", "bp", "score", "probability", "call", "confidence")
    blocks = [
        format_table(("call", "records"), rows),
        "\n".join(_describe_calls(counts, rule, directory.regions_tsv.name)),
        format_table(headings, best) if best else "",
        f"{_describe_time(summary['seconds'], seconds)}\n"
        f"results: {directory.output_path}{'_*' if directory.prefix else ''}",
    ]
    echo("\n" + "\n\n".join(filter(None, blocks)))


def _describe_calls(
    counts: Mapping[str, int], rule: Mapping[str, Any], regions_name: str
) -> Iterator[str]:
    threshold, expected, share = rule["threshold"], rule["expected_fdr"], rule["viral_share"]
    # Runs of earlier states assumed every share.
    is_estimated = rule.get("is_share_estimated", False)
    if threshold is None:
        yield "no record may be called viral: none meets the bound on false discoveries"
    else:
        # Enough digits for a threshold near 1, such as 0.9998765.
        yield f"called viral from a {rule['by']} of {threshold:.10g} on"
    # Both are known if the classifier has a calibration.
    if expected is not None and share is not None:
        yield (
            f"expected false discovery rate of the viral records: {expected:.2g}, if "
            f"{100 * share:.3g} % of all records are viral "
            f"({'estimated' if is_estimated else '--viral-share'})"
        )
    if counts["virus"]:
        yield (
            f"{count_who(counts['virus_few_chunks'], 'viral call', 'rest', of=counts['virus'])} on "
            "one or two scored chunks"
        )
    # Runs of earlier states do not count them.
    if number := counts.get("proviruses", 0):
        regions = count(number, "viral region")
        yield f"{regions} in records not called viral (proviruses): {regions_name}"


def _describe_time(stages: Mapping[str, float], seconds: float | None) -> str:
    if seconds is not None:
        return f"time: {format_seconds(seconds, tenths=True)}"
    longest = sorted(stages.items(), key=itemgetter(1), reverse=True)
    # The longest is the total.
    told = ", ".join(
        f"{name} {format_seconds(value, tenths=True)}"
        for name, value in longest[1 : _NUM_STAGES + 1]
    )
    return f"time: {format_seconds(stages['total'], tenths=True)}, most of it for {told}"


def echo_sections(sections: Sequence[Section]) -> None:
    """Print for each section of a report its records, and the figures with their intervals."""
    for section in sections:
        echo(
            f"{section.records}: {section.num_viral:,} viral, {section.num_others:,} others; "
            f"{_describe_intervals(section)}"
        )
        for name in _SHOWN:
            value, low, high = section.estimates[name]
            text = "not defined" if math.isnan(value) else f"{value:.3f}"
            interval = "" if math.isnan(low) else f" ({low:.3f}-{high:.3f})"
            echo(f"  {name.replace('_', ' '):18} {text}{interval}")


def _describe_intervals(section: Section) -> str:
    drawn = (
        f"{section.resampled} ({section.num_viral_resampled:,} viral, "
        f"{section.num_others_resampled:,} others)"
    )
    if all(math.isnan(low) for _, low, _ in section.estimates.values()):
        return f"no intervals, because there are too few {drawn}"
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

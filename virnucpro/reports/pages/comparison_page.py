"""The page that compares several runs of `predict`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro.checkpoints.run_directory import RunDirectory, find_run
from virnucpro.errors import InputError
from virnucpro.reports.pages.plots import draw_bars, draw_columns
from virnucpro.reports.pages.records import MAX_LISTED, read_share, show_text
from virnucpro.reports.pages.render import write_page
from virnucpro.reports.pages.run_page import name_inputs
from virnucpro.reports.record_results import CALLS
from virnucpro.reports.run_json import read_run_json
from virnucpro.reports.tables import explaining_numbers, read_table

# Rows that a reader without JavaScript sees.
_NUM_STATIC = 100


class Pair(NamedTuple):
    """Two runs over the same input.

    Attributes:
        names: Of the two runs.
        counts: How many records have each pair of calls.
        table_data: The first records with different calls, and what both runs say of them.
    """

    names: tuple[str, str]
    counts: dict[tuple[str, ...], int]
    table_data: dict[str, Any]

    @property
    def num_listed(self) -> int:
        """Records in the table."""
        return len(self.table_data["values"]["record_id"])

    @property
    def num_different(self) -> int:
        """Records whose calls differ."""
        return sum(count for (one, other), count in self.counts.items() if one != other)


def write_comparison_page(run_dirs: Sequence[Path], path: Path) -> None:
    """Write the page that compares finished runs.

    Args:
        run_dirs: The directories of the runs.
        path: The file to write.

    Raises:
        InputError: A file of a run cannot be read.
        OutputError: The page cannot be written.
    """
    directories = [find_run(one) for one in run_dirs]
    runs = [read_run_json(one.run_json) for one in directories]
    names = _name_runs(run_dirs)
    shares = [
        {call: 100 * run["counts"][call] / max(1, run["counts"]["records"]) for call in CALLS}
        for run in runs
    ]
    # Each run by what decided its calls.
    histograms = [(run["calls"]["by"], run["histograms"][run["calls"]["by"]]) for run in runs]
    write_page(
        path,
        "comparison.html",
        title=f"virnucpro: {len(runs)} runs",
        runs=[
            {"name": name, "files": ", ".join(name_inputs(run)), **run}
            for name, run in zip(names, runs, strict=True)
        ],
        calls_plot=draw_bars("Calls of each run", list(zip(names, shares, strict=True)), " %"),
        viral_plot=draw_bars(
            "Viral records of each run",
            [
                (name, {"virus": run["counts"]["virus"]})
                for name, run in zip(names, runs, strict=True)
            ],
        ),
        histogram_plots=[
            draw_columns(name, found["edges"], {call: found[call] for call in CALLS}, by)
            for name, (by, found) in zip(names, histograms, strict=True)
        ],
        pairs=_compare(directories, names, runs),
        num_static=_NUM_STATIC,
        calls=CALLS,
    )


def _name_runs(run_dirs: Sequence[Path]) -> list[str]:
    """Return the names of the directories, or their paths where names repeat."""
    names = [one.resolve().name for one in run_dirs]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [
        show_text(str(path) if name in repeated else name)
        for name, path in zip(names, run_dirs, strict=True)
    ]


def _compare(
    directories: Sequence[RunDirectory], names: Sequence[str], runs: Sequence[Mapping[str, Any]]
) -> list[Pair]:
    """Compare each run with the first run before it that has the same input."""
    pairs = []
    first_with: dict[tuple[str, ...], int] = {}
    for index, run in enumerate(runs):
        # By digest, because one file may have several paths, and a path several files.
        first = first_with.setdefault(tuple(file["sha256"] for file in run["inputs"]), index)
        if first != index:
            paths = directories[first].records_tsv, directories[index].records_tsv
            pairs.append(_compare_tables(paths, (names[first], names[index])))
    return pairs


def _compare_tables(paths: tuple[Path, Path], names: tuple[str, str]) -> Pair:
    counts: Counter[tuple[str, ...]] = Counter()
    columns = [("record_id", "record", False)]
    for run, name in enumerate(names):
        columns.append((f"call_{run}", name, False))
        columns.append((f"probability_{run}", "probability", True))
    values: dict[str, list[Any]] = {name: [] for name, _, _ in columns}
    tables = (read_table(path, ("record_id", "call", "probability")) for path in paths)
    try:
        # Line by line: tables of one input have the same records in the same order.
        for both in zip(*tables, strict=True):
            calls = tuple(line["call"] for _, line in both)
            counts[calls] += 1
            if calls[0] == calls[1] or len(values["record_id"]) == MAX_LISTED:
                continue
            values["record_id"].append(show_text(both[0][1]["record_id"]))
            for run, (path, (number, line)) in enumerate(zip(paths, both, strict=True)):
                values[f"call_{run}"].append(line["call"])
                with explaining_numbers(path, number):
                    values[f"probability_{run}"].append(read_share(line["probability"]))
    except ValueError as error:
        raise InputError(
            f"{paths[1]}: not as many records as in {paths[0]}, although both runs had the same "
            "input; run virnucpro predict again with --resume"
        ) from error
    return Pair(names, dict(counts), {"columns": columns, "values": values})

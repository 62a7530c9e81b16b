"""The page of one run of `predict`: what was run, its calls, and where viruses lie."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.reports.pages.plots import TRACK_FRAME, Plot, draw_bars, draw_cells, draw_columns
from virnucpro.reports.pages.records import Records, read_records, show_text
from virnucpro.reports.pages.render import write_page
from virnucpro.reports.pages.tracks import MIDDLE, Tracks, read_tracks
from virnucpro.reports.record_results import CALLS
from virnucpro.reports.run_json import read_run_json
from virnucpro.scoring.decisions import CONFIDENCE_TIERS

# Rows and tracks that a reader without JavaScript sees.
_NUM_STATIC = 100

_COLUMNS = (
    ("record_id", "record", False),
    ("length", "length (bp)", True),
    ("call", "call", False),
    ("probability", "probability", True),
    ("score", "score", True),
    ("confidence", "confidence", False),
    ("num_open_chunks", "scored chunks", True),
    ("num_viral_chunks", "viral chunks", True),
    ("reason", "reason", False),
)


def write_run_page(directory: RunDirectory, path: Path) -> None:
    """Write the page of a finished run.

    Args:
        directory: The run's.
        path: The file to write.

    Raises:
        InputError: A file of the run cannot be read.
        OutputError: The page cannot be written.
    """
    run = read_run_json(directory.run_json)
    records = read_records(directory)
    tracks = read_tracks(directory, records, _NUM_STATIC)
    rule = run["calls"]
    write_page(
        path,
        "run.html",
        title=f"virnucpro: {', '.join(name_inputs(run))}",
        run=run,
        rule=rule,
        counts=run["counts"],
        started_at=datetime.fromisoformat(run["started_at"]).strftime("%d %B %Y, %H:%M UTC"),
        computing=", ".join((*_name_devices(run), run["precision"])),
        records=records,
        num_static=_NUM_STATIC,
        table_data=_make_table(records, tracks),
        calls=CALLS,
        calls_plot=draw_bars(
            "Records by call", [(name, {name: run["counts"][name]}) for name in CALLS]
        ),
        confidence_plot=_draw_confidence(records),
        reasons_plot=_draw_reasons(run["reasons"]),
        share_plots=[
            draw_cells(
                f"{name.capitalize()} and length",
                cells,
                name,
                rule["threshold"] if rule["by"] == name else None,
            )
            for name, cells in records.cells.items()
        ],
        histogram_plots=_draw_histograms(run),
        seconds_plot=draw_bars(
            "Where the time went",
            [(name, {"seconds": value}) for name, value in run["seconds"].items()],
            " s",
        ),
        tracks=tracks,
        middle=MIDDLE,
    )


def name_inputs(run: Mapping[str, Any]) -> list[str]:
    """Return the names of a run's input files, without their directories."""
    return [show_text(Path(file["path"]).name) for file in run["inputs"]]


def _draw_histograms(run: Mapping[str, Any]) -> list[Plot]:
    """Return the plots of the lengths, and of what decides the calls."""
    plots = []
    for name, label in (("length", "length (bp)"), (run["calls"]["by"], run["calls"]["by"])):
        edges = run["histograms"][name]["edges"]
        counts = {call: run["histograms"][name][call] for call in CALLS}
        if name == "length":
            # Samples have few of the lengths that are possible.
            filled = [
                place
                for place, column in enumerate(zip(*counts.values(), strict=True))
                if any(column)
            ]
            first, last = (filled[0], filled[-1] + 1) if filled else (0, len(edges) - 1)
            edges = edges[first : last + 1]
            counts = {call: numbers[first:last] for call, numbers in counts.items()}
        plots.append(draw_columns(f"Records by {name}", edges, counts, label))
    return plots


def _draw_confidence(records: Records) -> Plot | None:
    # The surest first.
    tiers = [tier for tier in reversed(CONFIDENCE_TIERS) if tier != "-"]
    found = [
        (tier, {call: records.confidence.get((tier, call), 0) for call in ("virus", "others")})
        for tier in tiers
    ]
    # Without a calibration, no record has a tier.
    if not any(any(parts.values()) for _, parts in found):
        return None
    return draw_bars("Records by confidence", found)


def _draw_reasons(reasons: Mapping[str, int]) -> Plot | None:
    found = sorted(reasons.items(), key=lambda reason: -reason[1])
    if not found:
        return None
    return draw_bars("Reasons", [(name, {"none": number}) for name, number in found])


def _name_devices(run: Mapping[str, Any]) -> list[str]:
    found = [one.get("device") for each in run["passes"].values() for one in each]
    return sorted({name for name in found if name})


def _make_table(records: Records, tracks: Tracks) -> dict[str, Any]:
    """Return the records as columns, which are smaller than objects."""
    # The last for a choice above the table, and not for a column.
    names = ("place", *(name for name, _, _ in _COLUMNS), "num_proviruses")
    return {
        "columns": _COLUMNS,
        "tracks": tracks.packed,
        "frame": TRACK_FRAME | {"middle": MIDDLE},
        "values": {name: [getattr(one, name) for one in records.listed] for name in names},
    }

"""The page of one run of `predict`: what was run, its calls, and where viruses lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.reports.pages.plots import (
    Plot,
    draw_bars,
    draw_cells,
    draw_columns,
    draw_track,
)
from virnucpro.reports.pages.records import (
    Record,
    Records,
    read_chunks,
    read_records,
    show_text,
)
from virnucpro.reports.pages.render import write_page
from virnucpro.reports.record_results import CALLS, read_run_json
from virnucpro.scoring.decisions import CONFIDENCE_TIERS

RUN_KEYS = ("calls", "counts", "histograms", "inputs", "reasons", "seconds", "settings")
"""What run.json must have for a page."""

MAX_TRACKS = 1_000
"""Records whose chunks are drawn; each takes up to some kilobytes."""

# About as many as a plot is wide.
_MAX_CHUNKS = 400
_NUM_STATIC = 100
_MIDDLE = 0.5

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
    run = read_run_json(directory.run_json, RUN_KEYS)
    records = read_records(directory)
    drawable, tracks = _draw_tracks(directory, records)
    rule = run["calls"]
    write_page(
        path,
        "run.html",
        title=f"virnucpro: {', '.join(name_inputs(run))}",
        run=run,
        rule=rule,
        counts=run["counts"],
        started_at=datetime.fromisoformat(run["started_at"]).strftime("%d %B %Y, %H:%M UTC"),
        devices=", ".join(_name_devices(run)),
        records=records,
        num_static=_NUM_STATIC,
        columns=_COLUMNS,
        table=_make_table(records.listed, list(tracks)),
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
        num_drawable=drawable,
        middle=_MIDDLE,
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
    return sorted({name for name in found if name}) or ["unknown device"]


def _make_table(listed: Sequence[Record], tracks: Sequence[int]) -> dict[str, Any]:
    """Return the records as columns, which are smaller than objects."""
    names = ("place", *(name for name, _, _ in _COLUMNS))
    return {
        "columns": _COLUMNS,
        "tracks": tracks,
        "values": {name: [getattr(record, name) for record in listed] for name in names},
    }


def _draw_tracks(directory: RunDirectory, records: Records) -> tuple[int, dict[int, Plot]]:
    """Return how many records have a track, and the tracks of the first of them by index."""
    if not directory.chunks_tsv.is_file():
        return 0, {}
    regions = records.regions
    # A record that is called `others` may still have a region: a provirus.
    drawable = [one for one in records.listed if one.call == "virus" or one.place in regions]
    drawn = {record.place: record for record in drawable[:MAX_TRACKS]}
    tracks = {
        index: draw_track(
            drawn[index].record_id,
            drawn[index].length,
            _thin(chunks),
            regions.get(index, ()),
            _MIDDLE,
        )
        for index, chunks in read_chunks(directory, records, drawn)
    }
    # In the order of the table. The chunks came in the order of the input.
    return len(drawable), {index: tracks[index] for index in drawn if index in tracks}


def _thin(chunks: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Return means of neighbours where there are more chunks than a plot can show."""
    # Rounded up, so that no more points remain than wanted.
    step = -(-len(chunks) // _MAX_CHUNKS)
    if step <= 1:
        return chunks
    places = [*range(0, len(chunks), step), len(chunks)]
    return [
        (
            chunks[first][0],
            chunks[last - 1][1],
            sum(score for *_, score in chunks[first:last]) / (last - first),
        )
        for first, last in pairwise(places)
    ]

"""Reads and packs tracks: the scores of a record's chunks along the record, and its regions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise, takewhile
from typing import Any, NamedTuple

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.reports.pages.plots import Plot, draw_track
from virnucpro.reports.pages.records import Records, read_chunks

MAX_BYTES = 20_000_000
"""All packed tracks of a page take up to about so many: a browser reads them in half a second."""

MIDDLE = 0.5
"""Scores above it look viral."""

# About as many as a plot is wide.
_MAX_CHUNKS = 400
# A packed track has one and a third letters for each chunk, and about so many for everything else.
_OTHER_BYTES = 60

Chunks = list[tuple[int, int, float]]


class Tracks(NamedTuple):
    """The tracks of a page.

    Attributes:
        num_records: The records that are viral or have a viral region, on the page or not; without
            those of one chunk.
        num_left_out: Those of one chunk, whose score is in the table.
        packed: The tracks that the script can draw, by the place of the record: the most viral of
            those records, the most viral first.
        drawn: The first of them, drawn for readers without JavaScript.
    """

    num_records: int
    num_left_out: int
    packed: dict[int, list[Any]]
    drawn: dict[int, Plot]


def read_tracks(directory: RunDirectory, records: Records, num_drawn: int) -> Tracks:
    """Return the tracks of a finished run, and draw the first `num_drawn`.

    Raises:
        InputError: The table of the chunks cannot be read.
    """
    if not directory.chunks_tsv.is_file():
        return Tracks(0, 0, {}, {})
    wanted = [one for one in records.listed if one.has_track]
    sizes = accumulate(_OTHER_BYTES + 4 * min(one.num_chunks, _MAX_CHUNKS) // 3 for one in wanted)
    num_packed = sum(1 for _ in takewhile(lambda size: size <= MAX_BYTES, sizes))
    by_place = {record.place: record for record in wanted[:num_packed]}
    static = set([*by_place][:num_drawn])
    packed, drawn = {}, {}
    for place, all_chunks in read_chunks(directory, records, by_place):
        record, chunks = by_place[place], _thin(all_chunks)
        packed[place] = _pack(chunks, record.regions)
        if place in static:
            drawn[place] = draw_track(
                record.record_id, record.length, chunks, record.regions, MIDDLE
            )
    # In the order of the table. The chunks came in the order of the input.
    return Tracks(
        records.num_with_track,
        records.num_with_virus - records.num_with_track,
        {place: packed[place] for place in by_place if place in packed},
        {place: drawn[place] for place in by_place if place in drawn},
    )


def _pack(chunks: Chunks, regions: Sequence[tuple[int, int]]) -> list[Any]:
    """Return the scores as bytes in base64, the places of the chunks, and those of the regions.

    The places are numbers in threes: how many chunks there are, how far their starts lie apart, and
    how long they are. Chunks of a record are spread evenly, so a few threes will do.
    """
    scores = bytes(round(255 * score) for *_, score in chunks)
    starts = [0, *(start for start, _, _ in chunks)]
    steps = (
        (start - before, end - start)
        for before, (start, end, _) in zip(starts, chunks, strict=False)
    )
    runs = ((sum(1 for _ in run), *step) for step, run in groupby(steps))
    return [
        base64.b64encode(scores).decode(),
        [number for run in runs for number in run],
        [place for region in regions for place in region],
    ]


def _thin(chunks: Chunks) -> Chunks:
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

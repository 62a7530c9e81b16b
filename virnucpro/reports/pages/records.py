"""Reads the tables of a run for a page: each in one pass, and in little memory."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.reports.tables import explaining_numbers, parse_count, parse_share, read_table

MAX_LISTED = 100_000
"""Rows in a table of a page; a browser stays quick with so many."""

# Letters of an id that a page shows.
_MAX_ID = 200

_CELLS_A_DECADE = 24
_CELLS_OF_SHARES = 50

_COUNTS = ("length", "num_chunks", "num_open_chunks", "num_viral_chunks")
_SHARES = ("score", "probability")
_NO_REGIONS: tuple[int, list[tuple[int, int]]] = (-1, [])


class Record(NamedTuple):
    """A line of `records.tsv`.

    Attributes:
        place: In the table, from 0.
        record_id: The id, cut if it is very long.
        length: In bp.
        call: `virus`, `others` or `none`.
        probability: That it is viral; None if unknown.
        score: The viral score; None without a call.
        confidence: `high`, `medium`, `low` or `-`.
        num_chunks: Its chunks.
        num_open_chunks: Its scored chunks.
        num_viral_chunks: Its chunks that are called viral.
        reason: Why there is no call; `-` if there is one.
        regions: The start and the end of each of its viral regions.
    """

    place: int
    record_id: str
    length: int
    call: str
    probability: float | None
    score: float | None
    confidence: str
    num_chunks: int
    num_open_chunks: int
    num_viral_chunks: int
    reason: str
    regions: Sequence[tuple[int, int]] = ()

    @property
    def has_virus(self) -> bool:
        """Whether it is viral or, as a provirus, has a viral region."""
        return self.call == "virus" or bool(self.regions)

    @property
    def num_proviruses(self) -> int:
        """How many viral regions it has, if it is not viral as a whole."""
        return 0 if self.call == "virus" else len(self.regions)

    @property
    def has_track(self) -> bool:
        """Whether a track shows more than the table: one chunk has one score, which is there."""
        return self.has_virus and self.num_chunks > 1

    @property
    def rank(self) -> float:
        """By which records are listed, the most viral first."""
        known = self.probability if self.probability is not None else self.score
        # Below every share, so that records without a call come last.
        return -1.0 if known is None else known


class Records(NamedTuple):
    """What a page shows of a table of records.

    Attributes:
        total: How many records the table has.
        num_with_virus: How many of them are viral or have a viral region.
        num_with_track: How many of these have more than one chunk.
        listed: Some of them, the most viral first: all that are viral or have a viral region if
            there is room, and then the most viral others.
        cells: For `score` and `probability` how many records have about the same call, length and
            share.
        confidence: How many records have each confidence and call.
        num_chunks: Of every record, in the order of the table.
    """

    total: int
    num_with_virus: int
    num_with_track: int
    listed: list[Record]
    cells: dict[str, dict[tuple[str, float, float], int]]
    confidence: dict[tuple[str, str], int]
    num_chunks: array[int]


def read_records(directory: RunDirectory) -> Records:
    """Return what a page shows of a run's records and of their viral regions.

    Raises:
        InputError: The table cannot be read, or has a wrong number.
    """
    path = directory.records_tsv
    columns = Record._fields[1:-1]
    # Counted in cells, because a dot for each record would be too much for a page.
    counted: dict[str, Counter[tuple[str, int, int]]] = {name: Counter() for name in _SHARES}
    confidence: Counter[tuple[str, str]] = Counter()
    num_with_virus = num_with_track = 0
    best: list[tuple[bool, float, int, Record]] = []
    # 8 bytes a record, because a table may have millions. Only of listed records more is kept.
    num_chunks = array("q")
    regions = _read_regions(directory.regions_tsv)
    next_place, spans = next(regions, _NO_REGIONS)
    for number, line in read_table(path, columns):
        record = _read_record(path, number, len(num_chunks), line)
        num_chunks.append(record.num_chunks)
        # Both tables have the order of the input.
        if record.place == next_place:
            record = record._replace(regions=spans)
            next_place, spans = next(regions, _NO_REGIONS)
        confidence[record.confidence, record.call] += 1
        for name in _SHARES:
            share = getattr(record, name)
            if share is not None:
                # An empty record has no logarithm.
                decade = math.floor(math.log10(max(1, record.length)) * _CELLS_A_DECADE)
                # A share of 1 belongs to the last cell.
                height = min(_CELLS_OF_SHARES - 1, math.floor(share * _CELLS_OF_SHARES))
                counted[name][record.call, decade, height] += 1
        num_with_virus += record.has_virus
        num_with_track += record.has_track
        # Of equal records the earlier one is kept, and no record is ever compared.
        entry = (record.has_virus, record.rank, -record.place, record)
        if len(best) < MAX_LISTED:
            heapq.heappush(best, entry)
        elif entry > best[0]:
            heapq.heapreplace(best, entry)
    best.sort(key=lambda entry: entry[1:], reverse=True)
    cells = {
        name: {
            (call, 10 ** ((x + 0.5) / _CELLS_A_DECADE), (y + 0.5) / _CELLS_OF_SHARES): count
            for (call, x, y), count in found.items()
        }
        for name, found in counted.items()
        if found
    }
    listed = [record for *_, record in best]
    counts = len(num_chunks), num_with_virus, num_with_track
    return Records(*counts, listed, cells, confidence, num_chunks)


def read_chunks(
    directory: RunDirectory, records: Records, wanted: Mapping[int, Record]
) -> Iterator[tuple[int, list[tuple[int, int, float]]]]:
    """Yield the places of wanted records, each with start, end and score of its scored chunks.

    Raises:
        InputError: The table cannot be read.
    """
    path = directory.chunks_tsv
    lines = read_table(path, ("start", "end", "score"))
    for place, num_chunks in enumerate(records.num_chunks):
        found = islice(lines, num_chunks)
        if place not in wanted:
            # Read all the same: the lines of the next record follow.
            for _ in found:
                pass
            continue
        scored = []
        for number, line in found:
            if line["score"] != "NA":
                with explaining_numbers(path, number):
                    span = parse_count(line["start"]), parse_count(line["end"])
                    scored.append((*span, parse_share(line["score"])))
        yield place, scored


def _read_regions(path: Path) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield the place of each record with viral regions, and the start and the end of each.

    There are none if the run has no such table.
    """
    if not path.is_file():
        return
    lines = read_table(path, ("record_number", "start", "end"))
    for _, group in groupby(lines, lambda line: line[1]["record_number"]):
        spans = []
        for number, line in group:
            with explaining_numbers(path, number):
                place = parse_count(line["record_number"]) - 1
                spans.append((parse_count(line["start"]), parse_count(line["end"])))
        yield place, spans


def show_text(text: str) -> str:
    """Return text from a file so that a page can hold it: valid Unicode, and not too long."""
    # Bytes that are no UTF-8 were read as lone surrogates, which no page can hold.
    valid = text[: _MAX_ID + 1].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return valid if len(valid) <= _MAX_ID else f"{valid[:_MAX_ID]}…"


def _read_record(path: Path, number: int, place: int, line: dict[str, str]) -> Record:
    values: dict[str, Any] = dict(line)
    with explaining_numbers(path, number):
        values |= {name: parse_count(line[name]) for name in _COUNTS}
        values |= {name: read_share(line[name]) for name in _SHARES}
    return Record(place, **values | {"record_id": show_text(line["record_id"])})


def read_share(word: str) -> float | None:
    """Return a score or a probability of a table; None for `NA`."""
    share = parse_share(word)
    return None if math.isnan(share) else share

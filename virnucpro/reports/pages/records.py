"""Reads `records.tsv` for a page, in one pass and in little memory."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from virnucpro.errors import InputError
from virnucpro.reports.tables import read_table

MAX_LISTED = 100_000
"""Records in the table of a page; a browser stays quick with so many."""

_MAX_ID = 200
"""Letters of an id that a page shows."""

_CELLS_A_DECADE = 24
_CELLS_OF_SHARES = 50

_NUMBERS = {"length": int, "num_chunks": int, "num_open_chunks": int, "num_viral_chunks": int}
_SHARES = ("score", "probability")


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

    @property
    def rank(self) -> float:
        """By which records are listed, the most viral first."""
        known = self.probability if self.probability is not None else self.score
        return -1.0 if known is None else known


class Records(NamedTuple):
    """What a page shows of a table of records.

    Attributes:
        total: How many records the table has.
        listed: The most viral of them, the most viral first.
        cells: For `score` and `probability` how many records have about the same call, length and
            share.
        confidence: How many records have each confidence and call.
        num_chunks: Of every record, in the order of the table.
    """

    total: int
    listed: list[Record]
    cells: dict[str, dict[tuple[str, float, float], int]]
    confidence: dict[tuple[str, str], int]
    num_chunks: array[int]


def read_records(path: Path) -> Records:
    """Return what a page shows of `records.tsv`.

    Raises:
        InputError: The table cannot be read, or has a wrong number.
    """
    columns = (*Record._fields[1:],)
    counted: dict[str, Counter[tuple[str, int, int]]] = {name: Counter() for name in _SHARES}
    confidence: Counter[tuple[str, str]] = Counter()
    best: list[tuple[float, int, Record]] = []
    num_chunks = array("q")
    for number, line in read_table(path, columns):
        record = _read_record(path, number, len(num_chunks), line)
        num_chunks.append(record.num_chunks)
        confidence[record.confidence, record.call] += 1
        for name in _SHARES:
            share = getattr(record, name)
            if share is not None:
                decade = math.floor(math.log10(max(1, record.length)) * _CELLS_A_DECADE)
                height = min(_CELLS_OF_SHARES - 1, math.floor(share * _CELLS_OF_SHARES))
                counted[name][record.call, decade, height] += 1
        # Of equal records the earlier one is kept, and no record is ever compared.
        entry = (record.rank, -record.place, record)
        if len(best) < MAX_LISTED:
            heapq.heappush(best, entry)
        elif entry > best[0]:
            heapq.heapreplace(best, entry)
    best.sort(reverse=True)
    cells = {
        name: {
            (call, 10 ** ((x + 0.5) / _CELLS_A_DECADE), (y + 0.5) / _CELLS_OF_SHARES): count
            for (call, x, y), count in found.items()
        }
        for name, found in counted.items()
        if found
    }
    return Records(len(num_chunks), [record for *_, record in best], cells, confidence, num_chunks)


def show_text(text: str) -> str:
    """Return text from a file so that a page can hold it: valid Unicode, and not too long."""
    # Bytes that are no UTF-8 were read as lone surrogates, which no page can hold.
    valid = text[: _MAX_ID + 1].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return valid if len(valid) <= _MAX_ID else f"{valid[:_MAX_ID]}…"


def _read_record(path: Path, number: int, place: int, line: dict[str, str]) -> Record:
    values: dict[str, Any] = dict(line)
    try:
        values |= {name: kind(line[name]) for name, kind in _NUMBERS.items()}
        values |= {name: None if line[name] == "NA" else float(line[name]) for name in _SHARES}
    except ValueError as error:
        raise InputError(f"{path}, line {number}: found no number ({error})") from error
    return Record(place, **values | {"record_id": show_text(line["record_id"])})

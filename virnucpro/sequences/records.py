"""Records, chunks and frames, and their names, which are exactly the original VirNucPro's.

A *record* is one input sequence. It is cut into *chunks*, and each chunk is read in six *frames*. A
frame without a stop codon is an *open frame*. A *stretch* is a run of codons of a frame without a
stop codon and without an ambiguous codon.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FRAME_NAMES = ("F1", "F2", "F3", "R1", "R2", "R3")
"""The six reading frames in the original's order; a frame's code is its index in this tuple."""

NAME_OF_ROW = {"open": "open frame", "stretches": "stretch"}
"""What people call one of them."""

NAMES_OF_ROWS = {"open": "open frames", "stretches": "stretches"}
"""What people call the rows of a frame store, by the kind of its frame rule."""

# Greedy, because the id of a record may itself contain "_chunk_1".
FRAME_ID = re.compile(r"(?P<chunk>(?P<record>.*)_chunk_(?P<number>\d+))[FR][123]", re.DOTALL)
"""Matches the name of a frame; `number` is the chunk's number in its record, from 1."""

ROW_ID = re.compile(rf"{FRAME_ID.pattern}(_\d+-\d+)?", re.DOTALL)
"""Matches the name of a frame or of a stretch."""


class Record(NamedTuple):
    """One input sequence as it was read.

    Attributes:
        header: The entire header line without `>` or `@`; its first word is the id.
        sequence: The letters as in the file, in their original case.
    """

    header: str
    sequence: str

    @property
    def id(self) -> str:
        """The first whitespace-separated word of the header."""
        return record_id(self.header)


def record_id(header: str) -> str:
    """Return the first whitespace-separated word of `header`, or an empty string."""
    # A header may be empty, or blanks alone: then nothing is split off, and reading refuses it.
    words = header.split(maxsplit=1)
    return words[0] if words else ""


def pair_id(header: str) -> str:
    """Return the id of a pair of reads, for the header of the first."""
    return record_id(header).removesuffix("/1")


def chunk_id(record_id: str, number: int) -> str:
    """Return the name of a record's chunk; `number` counts from 1."""
    return f"{record_id}_chunk_{number}"


def region_id(record_id: str, number: int) -> str:
    """Return the name of a record's viral region; `number` counts from 1."""
    return f"{record_id}_region_{number}"


def frame_id(chunk_id: str, frame_code: int) -> str:
    """Return the name of a chunk's frame; `frame_code` indexes `FRAME_NAMES`."""
    return chunk_id + FRAME_NAMES[frame_code]


def stretch_id(frame_id: str, first_codon: int, stop_codon: int) -> str:
    """Return the name of a frame's stretch: `contig_chunk_3F2_11-97`.

    Args:
        frame_id: The name of the frame.
        first_codon: The place of the first codon in the frame, from 0; the name counts from 1.
        stop_codon: The place behind the last codon.
    """
    # From 1, and with the last codon, as biologists count. The program counts from 0.
    return f"{frame_id}_{first_codon + 1}-{stop_codon}"

"""The plain things that everything else speaks of: records, chunks and frames, and their names.

A *record* is one input sequence; it is cut into *chunks*; a chunk is read in six *frames*, and a
frame without a stop codon is an *open frame*. Names follow the original VirNucPro exactly.
"""

from __future__ import annotations

from typing import NamedTuple

FRAME_NAMES = ("F1", "F2", "F3", "R1", "R2", "R3")
"""The six reading frames in the original's order; a frame's code is its index here."""


class Record(NamedTuple):
    """One input sequence as it was read.

    Attributes:
        header: The whole header line without `>` or `@`; its first word is the id.
        sequence: The letters as they stand in the file, case kept.
    """

    header: str
    sequence: str

    @property
    def id(self) -> str:
        """The first whitespace-separated word of the header."""
        return record_id(self.header)


def record_id(header: str) -> str:
    """Return the first whitespace-separated word of `header`, empty if there is none."""
    words = header.split(maxsplit=1)
    return words[0] if words else ""


def chunk_id(record_id: str, number: int) -> str:
    """Return the name of a record's chunk; `number` counts from 1."""
    return f"{record_id}_chunk_{number}"


def frame_id(chunk_id: str, frame_code: int) -> str:
    """Return the name of a chunk's frame; `frame_code` indexes `FRAME_NAMES`."""
    return chunk_id + FRAME_NAMES[frame_code]

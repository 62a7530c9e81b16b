"""Tables with positions: chunks, their scores along a record, and viral regions.

Positions count from 0 and are half-open, as in BED; GFF3 alone counts from 1 and includes the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from virnucpro.backend.arrays import split_rows
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import open_whole
from virnucpro.reports.tables import format_number, iterate_rows
from virnucpro.scoring.regions import ChunkScores, Regions
from virnucpro.sequences.frame_store import FrameStore
from virnucpro.sequences.records import region_id

# Characters besides letters, digits and `-~` that stand for themselves in a name of GFF3.
_GFF_PLAIN = ".:^*$@!+_?|"

# Terms of the Sequence Ontology (SO:0001041, SO:0000751), by whether a region is a provirus.
_GFF_TYPES = {False: "viral_sequence", True: "proviral_region"}

_REACHES = {(True, True): "both", (True, False): "start", (False, True): "end"}


class Region(NamedTuple):
    """A viral region, ready to be written.

    Attributes:
        record: The index of its record in the store.
        record_id: The id of its record.
        record_length: In bp.
        number: Its number in its record, from 1.
        start: Its first base, from 0.
        end: The base behind its last one.
        is_provirus: Whether its record is not called viral.
        num_open_chunks: Chunks with a score in it.
        score: Made of these chunks as the score of a record is.
        probability: That of a record with this score and as many chunks; NaN without a
            calibration.
    """

    record: int
    record_id: str
    record_length: int
    number: int
    start: int
    end: int
    is_provirus: bool
    num_open_chunks: int
    score: float
    probability: float

    @property
    def name(self) -> str:
        """The name of the region: `contig_region_1`."""
        return region_id(self.record_id, self.number)

    @property
    def kind(self) -> str:
        """`provirus` in a record that is not called viral, else `virus`."""
        return "provirus" if self.is_provirus else "virus"

    @property
    def reaches(self) -> str:
        """The ends of the record that the region reaches: `both`, `start`, `end` or `-`."""
        return _REACHES.get((self.start == 0, self.end == self.record_length), "-")


def list_regions(store: FrameStore, regions: Regions) -> Iterator[Region]:
    """Yield the regions, with what the store knows of their records."""
    rows = iterate_rows(*regions, store.record_lengths[regions.record])
    for record, *numbers, length in rows:
        yield Region(record, store.record_id(record), length, *numbers)


def write_chunks(path: Path, store: FrameStore, chunks: ChunkScores) -> None:
    """Write `chunks.tsv`: a line for each chunk.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_whole(path) as file:
        file.write(
            "record_id\tchunk\tstart\tend\tnum_frames\tscore\tprobability\tscored\tevidence\n"
        )
        for block in split_rows(0, store.num_chunks):
            index = np.arange(block.start, block.stop)
            rows = iterate_rows(
                index - store.record_first_chunk[store.find_records(index)] + 1,
                *store.locate_chunks(index),
                np.diff(store.chunk_first_frame[block.start : block.stop + 1]),
                chunks.score[block],
                chunks.probability[block],
                chunks.evidence[block],
            )
            file.writelines(
                f"{record_id}\t{number}\t{start}\t{end}\t{frames}\t{format_number(score)}"
                f"\t{format_number(chance)}\t{'true' if score == score else 'false'}"
                f"\t{format_number(evidence)}\n"
                # A score that is not equal to itself is NaN.
                for record_id, (number, start, end, frames, score, chance, evidence) in zip(
                    _name_records(store, block), rows, strict=True
                )
            )


def write_bedgraph(path: Path, store: FrameStore, chunks: ChunkScores) -> None:
    """Write `scores.bedgraph`: the score of each chunk, without overlap and without unscored ones.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_whole(path) as file:
        for block in split_rows(0, store.num_chunks):
            cells = store.locate_cells(np.arange(block.start, block.stop))
            rows = iterate_rows(*cells, chunks.score[block])
            file.writelines(
                f"{record_id}\t{start}\t{end}\t{score!r}\n"
                for record_id, (start, end, score) in zip(
                    _name_records(store, block), rows, strict=True
                )
                if score == score  # NaN is not
            )


def write_regions(directory: RunDirectory, store: FrameStore, regions: Regions) -> None:
    """Write the viral regions as a table, as BED and as GFF3.

    Args:
        directory: Where the files go.
        store: The records.
        regions: Their regions.

    Raises:
        OutputError: A file cannot be written.
    """
    with open_whole(directory.regions_tsv) as file:
        file.write(
            "record_id\tregion\tstart\tend\tlength\trecord_length\tkind\treaches"
            "\tnum_open_chunks\tscore\tprobability\trecord_number\n"
        )
        file.writelines(
            f"{each.record_id}\t{each.number}\t{each.start}\t{each.end}\t{each.end - each.start}"
            f"\t{each.record_length}\t{each.kind}\t{each.reaches}\t{each.num_open_chunks}"
            f"\t{format_number(each.score)}\t{format_number(each.probability)}\t{each.record + 1}\n"
            for each in list_regions(store, regions)
        )
    # Listed again for each file, so that the regions are never all in memory as objects.
    with open_whole(directory.regions_bed) as file:
        file.writelines(
            f"{each.record_id}\t{each.start}\t{each.end}\t{each.name}\t{_score_bed(each)}\t.\n"
            for each in list_regions(store, regions)
        )
    with open_whole(directory.regions_gff3) as file:
        file.write("##gff-version 3\n")
        for number, each in enumerate(list_regions(store, regions), start=1):
            # Two records may have one id, so the names of regions need not be unique.
            attributes = (
                f"ID=region{number};Name={_quote(each.name)}"
                f";probability={format_number(each.probability)};reaches={each.reaches}"
            )
            file.write(
                f"{_quote(each.record_id)}\tvirnucpro\t{_GFF_TYPES[each.is_provirus]}"
                f"\t{each.start + 1}\t{each.end}\t{each.score!r}\t.\t.\t{attributes}\n"
            )


def _name_records(store: FrameStore, chunks: slice) -> Iterator[str]:
    """Yield the id of the record of each chunk."""
    record = store.find_records(np.arange(chunks.start, chunks.stop))
    first = int(record[0])
    # The chunks of a block lie in neighbouring records, whose ids are read at once.
    names = store.record_ids(first, int(record[-1]) + 1)
    return (names[index - first] for index in record.tolist())


def _score_bed(region: Region) -> int:
    # Without a calibration there is a score only, and BED wants a number here.
    share = region.score if np.isnan(region.probability) else region.probability
    return round(1000 * share)


def _quote(text: str) -> str:
    # An id may have bytes that are no UTF-8.
    return quote(text, _GFF_PLAIN, errors="surrogateescape")

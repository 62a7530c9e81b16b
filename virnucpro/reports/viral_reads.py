"""Writes the viral reads of FASTQ files with their qualities."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

from virnucpro.backend.arrays import BoolArray
from virnucpro.checkpoints.whole_files import open_whole
from virnucpro.errors import InputError
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frame_store import FrameStore

logger = logging.getLogger(__name__)


def write_viral_fastq(path: Path, store: FrameStore, is_viral: BoolArray) -> None:
    """Write the viral reads of the run's FASTQ inputs as they are there; mates follow each other.

    The store has no qualities: they would double its size. So the inputs are read again.

    Args:
        path: The file to write.
        store: The records.
        is_viral: bool (R,), which of them to write.

    Raises:
        InputError: An input cannot be read, or has changed since the run.
        OutputError: The file cannot be written.
    """
    gone = [source["path"] for source in store.inputs if not Path(source["path"]).exists()]
    if gone:
        raise InputError(
            f"{gone[0]}: is not there any more, and viral.fastq is written from it; put it back, "
            "or do without viral.fastq (virnucpro call --no-fastq)"
        )
    first = 0
    # The files of first and second mates are read side by side.
    width = min(store.reads_per_record, len(store.inputs))
    with open_whole(path) as file:
        for place in range(0, len(store.inputs), width):
            sources = store.inputs[place : place + width]
            names = " and ".join(source["path"] for source in sources)
            files = [RecordReader(source["path"], "dna").read_fastq() for source in sources]
            wanted = sum(source["num_records"] for source in sources)
            found = 0
            for found, (header, letters, qualities) in enumerate(
                # Not strict: the counts below find a file with fewer reads, and name it.
                chain.from_iterable(zip(*files, strict=False)),
                1,
            ):
                # Before the store is asked, which knows no read behind its last one.
                _check_same(names, found <= wanted)
                record, mate = divmod(first + found - 1, store.reads_per_record)
                if is_viral[record]:
                    _check_same(names, header == store.reads(record)[mate].header)
                    file.write(f"@{header}\n{letters}\n+\n{qualities}\n")
            # FASTA has no qualities. A run may have both kinds of inputs.
            if found == 0:
                logger.warning("%s: is not FASTQ, so viral.fastq has none of its records", names)
            else:
                _check_same(names, found == wanted)
            first += wanted


def _check_same(path: str, is_same: bool) -> None:
    if not is_same:
        raise InputError(
            f"{path}: has other reads than in the run, so viral.fastq cannot be written; give the "
            "file of the run, or do without viral.fastq (virnucpro call --no-fastq)"
        )

"""A random sample of the records of files, drawn in one reading."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.records import Record


def sample_records(
    paths: Sequence[str | Path], num_records: int, seed: int
) -> tuple[list[Record], int]:
    """Return a random sample of the records in nucleotide files, and the number of all records.

    All records are equally likely. The sample keeps their order, and the same input and seed give
    the same sample. Only the sample is in memory.

    Args:
        paths: FASTA or FASTQ files.
        num_records: Records in the sample; if there are fewer, all of them are returned.
        seed: Random seed.

    Raises:
        InputError: A file cannot be read.
    """
    # A generator of our own, because other code may draw from Python's global one.
    rng = random.Random(seed)
    records = itertools.chain.from_iterable(RecordReader(path, "dna") for path in paths)
    counter = itertools.count()
    # Taking the largest random numbers needs one pass, and not the number of records.
    drawn = heapq.nlargest(
        num_records, ((rng.random(), next(counter), record) for record in records)
    )
    # Sorted by their place in the input, not by the random number.
    return [record for _, _, record in sorted(drawn, key=lambda item: item[1])], next(counter)

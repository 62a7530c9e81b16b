"""The records of a store, which the store of frames and the store of records have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.sequences.frame_store.files import CHANGED, READS_PER_RECORD, TextFile, open_table
from virnucpro.sequences.records import Record, pair_id, record_id

SequenceKind = Literal["dna", "protein", "record"]


class StoredRecords(ABC):
    """The records of the inputs in their order, which both kinds of store have.

    Attributes:
        directory: The store's directory.
        inputs: The `path`, `sha256`, `num_bytes` and `num_records` of each input.
        num_records: Records in all inputs.
        reads_per_record: 2 if a record is a pair of reads, otherwise 1.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.inputs: list[dict[str, Any]] = manifest["inputs"]
        self._headers = TextFile(directory / "headers.text")
        self._records = TextFile(directory / "records.text")
        self._header_offsets = open_table(directory, "header_offsets.int64")
        self._read_offsets = open_table(directory, "record_offsets.int64")
        self.reads_per_record: int = manifest.get(READS_PER_RECORD, 1)
        # The mates of a pair lie end to end, so that a pair has one span of letters, too.
        self._record_offsets = self._read_offsets[:: self.reads_per_record]
        self.num_records = len(self._record_offsets) - 1

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Number of sequences of each kind."""

    @abstractmethod
    def read_sequences(self, kind: SequenceKind, rows: Int64Array) -> list[str]:
        """Return the sequences of one kind, upper-case, in the order of `rows`."""

    @property
    def input_digest(self) -> str:
        """`sha256:` and the SHA-256 of the input, or of the list of the inputs' SHA-256s.

        It also says whether letters were changed by reading, and whether reads are in pairs.
        Otherwise the same files have other rows.
        """
        # Digests and not paths: a file that was moved or renamed is still the same input.
        digests = [file["sha256"] for file in self.inputs]
        if len(digests) > 1:
            # The order of the files counts, because rows follow it.
            listing = "".join(f"{digest}\n" for digest in digests)
            digests = [hashlib.sha256(listing.encode("ascii")).hexdigest()]
        is_changed = any(CHANGED in file for file in self.inputs)
        notes = (", letters changed by reading" if is_changed else "") + (
            ", in pairs" if self.reads_per_record > 1 else ""
        )
        return f"sha256:{digests[0]}{notes}"

    @cached_property
    def record_lengths(self) -> Int64Array:
        """Number of letters in each record: int64 (num_records,)."""
        return np.diff(self._record_offsets)

    def reads(self, index: int) -> list[Record]:
        """Return a record as it was read: one sequence, or both mates of a pair."""
        first = index * self.reads_per_record
        return [self._read(read) for read in range(first, first + self.reads_per_record)]

    def all_reads(self) -> Iterator[Record]:
        """Yield everything that was read, in its order."""
        return (self._read(index) for index in range(len(self._read_offsets) - 1))

    def _read(self, index: int) -> Record:
        header = self._headers.read(*self._header_offsets[index : index + 2].tolist())
        letters = self._records.read(*self._read_offsets[index : index + 2].tolist())
        return Record(_decode(header), letters.decode("ascii"))

    def record_id(self, index: int) -> str:
        """Return one record's id."""
        return self.record_ids(index, index + 1)[0]

    def record_ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of the records `start` to `stop - 1`."""
        step = self.reads_per_record
        offsets = self._header_offsets[start * step : stop * step + 1].tolist()
        # Headers of neighbours lie end to end, so one reading gets all of them.
        headers = self._headers.read(offsets[0], offsets[-1])
        # The pair has the id of its first read, without /1.
        name = record_id if step == 1 else pair_id
        return [
            name(_decode(headers[begin - offsets[0] : end - offsets[0]]))
            for begin, end in islice(pairwise(offsets), 0, None, step)
        ]

    def read_spans(self, records: Int64Array, start: Int64Array, length: Int64Array) -> list[str]:
        """Return as many letters of each of `records` from each start on, upper-case."""
        return self._read_letters(self._record_offsets[records] + start, length)

    def _read_letters(self, start: Int64Array, length: Int64Array) -> list[str]:
        letters = self._records.read_many(start, length)
        return [sequence.decode("ascii").upper() for sequence in letters]

    @property
    def num_duplicate_ids(self) -> int:
        """Number of ids that belong to more than one record."""
        return len(self._duplicate_ids)

    def duplicate_ids(self, limit: int) -> list[str]:
        """Return up to `limit` ids that belong to more than one record."""
        return [self.record_id(index) for index in self._duplicate_ids[:limit].tolist()]

    @cached_property
    def _duplicate_ids(self) -> Int64Array:
        return open_table(self.directory, "duplicate_ids.int64")


def _decode(header: bytes) -> str:
    return header.decode("utf-8", "surrogateescape")

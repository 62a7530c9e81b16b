"""Reading stores: many processes and DataLoader workers read one directory at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int32Array, Int64Array, UInt8Array
from virnucpro.errors import CheckpointError
from virnucpro.sequences import frames
from virnucpro.sequences.frame_store.files import (
    FIRST_CODONS,
    FRAME_FORMAT,
    RECORD_FORMAT,
    WRITE_AGAIN,
    TextFile,
    open_table,
    read_manifest,
    read_rule,
    verify_files,
)
from virnucpro.sequences.frame_store.stored_records import SequenceKind, StoredRecords
from virnucpro.sequences.records import chunk_id, frame_id, stretch_id

if TYPE_CHECKING:
    from virnucpro.checkpoints.identity import Identity


def open_frame_store(directory: Path, *, verify: bool = False) -> FrameStore:
    """Return the frame store in `directory`.

    Args:
        directory: Where the store lies.
        verify: Whether to read all of it and compare its digests. The first reader in a command
            does so; workers, and other processes of a launch, rely on it.

    Raises:
        CheckpointError: The store is missing, incomplete, damaged or of another format.
    """
    manifest = read_manifest(directory, FRAME_FORMAT)
    if verify:
        verify_files(directory, manifest)
    return FrameStore(directory, manifest)


def open_record_store(directory: Path) -> RecordStore:
    """Return the record store in `directory`.

    Raises:
        CheckpointError: The store is missing, incomplete, damaged or of another format.
    """
    return RecordStore(directory, read_manifest(directory, RECORD_FORMAT))


class SequenceSource:
    """The sequences of one kind by row. It is picklable, and each process opens its own files.

    Attributes:
        directory: The store's directory.
        kind: `dna` or `protein` for the open frames, or `record`.
    """

    def __init__(self, directory: Path, kind: SequenceKind) -> None:
        self.directory = directory
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files cannot travel to a worker, so only the path does.
        return SequenceSource, (self.directory, self.kind)

    def __len__(self) -> int:
        return self._store.num_rows

    def __getitem__(self, row: int) -> str:
        return self.get_many([row])[0]

    def get_many(self, rows: Int64Array | Sequence[int]) -> list[str]:
        """Return the sequences of `rows`, upper-case, in their order."""
        return self._store.read_sequences(self.kind, np.asarray(rows, np.int64))

    @cached_property
    def representatives(self) -> Int64Array:
        """For each row the first row with the same sequence: int64 (num_rows,)."""
        return open_table(self.directory, f"representatives_{self.kind}.int64")

    @cached_property
    def _store(self) -> StoredRecords:
        if self.kind == "record":
            return open_record_store(self.directory)
        return open_frame_store(self.directory)


class ChunkDna(SequenceSource):
    """The DNA that a head over chunks reads: all rows of a chunk have that of the first one."""

    @cached_property
    def representatives(self) -> Int64Array:
        """For each row the first row with the DNA of its chunk: int64 (num_rows,)."""
        first_rows = open_frame_store(self.directory).chunk_first_frame
        first_of_row = np.repeat(first_rows[:-1], np.diff(first_rows))
        representatives: Int64Array = np.asarray(super().representatives)[first_of_row]
        return representatives


class RecordStore(StoredRecords):
    """Records on disk; a row is a record."""

    @property
    def num_rows(self) -> int:
        """Number of records."""
        return self.num_records

    def sequences(self) -> SequenceSource:
        """Return the records' sequences by row."""
        return SequenceSource(self.directory, "record")

    def read_sequences(self, kind: SequenceKind, rows: Int64Array) -> list[str]:
        """Return the records of `rows`, upper-case."""
        return self.read_spans(rows, np.zeros_like(rows), self.record_lengths[rows])


class FrameStore(StoredRecords):
    """Records, their chunks, and what the frame rule takes of the chunks, which are the rows.

    Under the rule `open`, a row is an open frame, and rows are in the original's order: by record,
    chunk and frame code. Under the rule `stretches`, a row is a stretch, with the longest of a
    chunk first. Then the DNA of a row is that of the whole chunk.

    Attributes:
        rule: The frame rule.
        chunk_length_bp: Length of a chunk; the last chunk of a record may be shorter.
        min_length_bp: Shorter records have no chunks.
        record_first_chunk: int64 (num_records + 1,), the first chunk of each record.
        chunk_first_frame: int64 (num_chunks + 1,), the first row of each chunk.
        frame_codes: uint8 (num_rows,), indices into `records.FRAME_NAMES`.
        first_codons: int32 (num_rows,), the place of each stretch's first codon in its frame,
            from 0; empty under the rule `open`.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        super().__init__(directory, manifest)
        self.rule = read_rule(manifest)
        self.chunk_length_bp: int = manifest["chunk_length_bp"]
        self.min_length_bp: int = manifest["min_length_bp"]
        # Chunks are cut from reads. A record is one read, or the two reads of a pair.
        self._read_first_chunk = open_table(directory, "chunk_offsets.int64")
        self.record_first_chunk = self._read_first_chunk[:: self.reads_per_record]
        self.chunk_first_frame = open_table(directory, "frame_offsets.int64")
        self.frame_codes: UInt8Array = open_table(directory, "frame_codes.uint8")
        self.first_codons: Int32Array = np.empty(0, np.int32)
        if self.rule.kind == "stretches":
            self.first_codons = open_table(directory, FIRST_CODONS)
        self._proteins = TextFile(directory / "proteins.text")
        self._protein_offsets = open_table(directory, "protein_offsets.int64")

    @property
    def digest_for_parts(self) -> str:
        """What parts say of their input; a row is a position in this input.

        A minimum length leaves records out, which moves the rows of the records after them.
        """
        return f"{self.input_digest} from {self.min_length_bp} bp on"

    def check_part(self, path: Path, identity: Identity) -> None:
        """Check that the rows of a part are rows of this store.

        Raises:
            CheckpointError: The part was made from another input, or with another frame rule.
        """
        wanted = {
            "input_digest": self.digest_for_parts,
            "chunk_length_bp": self.chunk_length_bp,
            "frame_rule": str(self.rule),
        }
        for name, value in wanted.items():
            found = getattr(identity, name)
            if found != value:
                raise CheckpointError(
                    f"{path}: its {name.replace('_', ' ')} is {found}, and that of the run's frame "
                    f"store is {value}; {WRITE_AGAIN}"
                )

    @property
    def num_chunks(self) -> int:
        """Number of chunks, with and without rows."""
        return len(self.chunk_first_frame) - 1

    @property
    def num_rows(self) -> int:
        """Number of rows: open frames or stretches."""
        return len(self.frame_codes)

    def sequences(self, kind: Literal["dna", "protein"]) -> SequenceSource:
        """Return the DNA or the proteins by row."""
        return SequenceSource(self.directory, kind)

    def chunk_dna(self) -> SequenceSource:
        """Return the DNA by row, of each chunk only that of its first row."""
        # All stretches of a chunk have the whole chunk's DNA anyway.
        return (
            ChunkDna(self.directory, "dna") if self.rule.kind == "open" else self.sequences("dna")
        )

    def num_distinct(self, kind: Literal["dna", "protein"]) -> int:
        """Return the number of distinct sequences of the rows; each is embedded once."""
        # The first of its equals points to itself, so these are counted.
        representatives = self.sequences(kind).representatives
        return int(np.count_nonzero(representatives == np.arange(self.num_rows)))

    def chunk_ids(self, start: int, stop: int) -> list[str]:
        """Return the names of the chunks `start` to `stop - 1`."""
        return self._name_chunks(np.arange(start, stop))

    def frame_ids(self, start: int, stop: int) -> list[str]:
        """Return the names of the rows `start` to `stop - 1`."""
        chunks = self._name_chunks(self.find_chunks(np.arange(start, stop)))
        codes = self.frame_codes[start:stop].tolist()
        names = [frame_id(chunk, code) for chunk, code in zip(chunks, codes, strict=True)]
        if self.rule.kind == "open":
            return names
        first = self.first_codons[start:stop]
        # The end is not stored, because it follows from the length of the protein.
        stop_codon = first + np.diff(self._protein_offsets[start : stop + 1])
        spans = zip(names, first.tolist(), stop_codon.tolist(), strict=True)
        return [stretch_id(name, begin, end) for name, begin, end in spans]

    def stretch_features(self, rows: Int64Array) -> Float32Array:
        """Return what is known of rows besides their sequences: float32 (n, 4).

        The columns are whether the row is all of its frame (1 or 0), ln(L / 100), L / 100, and
        3 L / B. L is the number of amino acids of the row. B is the number of bases of its
        chunk.

        Args:
            rows: int64 (n,), stretches or open frames.
        """
        length = self._protein_offsets[rows + 1] - self._protein_offsets[rows]
        _, chunk_length = self._locate_chunks(self.find_chunks(rows))
        is_whole = length == frames.count_codons(chunk_length, self.frame_codes[rows])
        columns = (is_whole, np.log(length / 100), length / 100, 3 * length / chunk_length)
        return np.stack(columns, axis=1, dtype=np.float32)

    def find_chunks(self, rows: Int64Array) -> Int64Array:
        """Return the chunk of each row: int64 (n,)."""
        # The last chunk that begins at a row or before it has it. Chunks without rows are skipped.
        return np.searchsorted(self.chunk_first_frame, rows, "right") - 1

    def find_records(self, chunks: Int64Array) -> Int64Array:
        """Return the record of each chunk: int64 (n,)."""
        return np.searchsorted(self.record_first_chunk, chunks, "right") - 1

    def locate_chunks(self, chunks: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return where chunks start and end in their records, from 0 and half-open: int64 (n,).

        The second mate of a pair begins where the first one ends.
        """
        start, length = self._locate_chunks(chunks)
        start = start - self._record_offsets[self.find_records(chunks)]
        return start, start + length

    def locate_cells(self, chunks: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the part of its record that each chunk stands for: int64 (n,) starts and ends.

        Cells border on each other in the middle of where two chunks overlap, and cover the record.
        """
        records = self.find_records(chunks)
        edges = []
        for later, border in ((chunks, 0), (chunks + 1, self.record_lengths[records])):
            # The first and the last cell of a record have no neighbour on one side.
            is_inside = self.find_records(later) == self.find_records(later - 1)
            later = np.where(is_inside, later, chunks)
            before = np.where(is_inside, later - 1, chunks)
            # Both chunks read from the start of the later one to the end of the earlier one.
            middle = (self.locate_chunks(later)[0] + self.locate_chunks(before)[1]) // 2
            edges.append(np.where(is_inside, middle, border))
        return edges[0], edges[1]

    def chunk_sequences(self, start: int, stop: int) -> list[str]:
        """Return the sequences of the chunks `start` to `stop - 1`, upper-case."""
        return self._read_letters(*self._locate_chunks(np.arange(start, stop)))

    def read_sequences(self, kind: SequenceKind, rows: Int64Array) -> list[str]:
        """Return the DNA or the proteins of `rows`, upper-case, in their order."""
        # For DNA too: the length of an open frame's DNA follows from that of its protein.
        protein_start = self._protein_offsets[rows]
        protein_length = self._protein_offsets[rows + 1] - protein_start
        if kind == "protein":
            proteins = self._proteins.read_many(protein_start, protein_length)
            return [protein.decode("ascii") for protein in proteins]
        if self.rule.kind == "stretches":
            return self._read_letters(*self._locate_chunks(self.find_chunks(rows)))
        # Only positions are stored: the DNA is cut from the records whenever it is asked for.
        codes = self.frame_codes[rows]
        chunk_start, chunk_length = self._locate_chunks(self.find_chunks(rows))
        begin, length = frames.locate_frame_dna(chunk_length, codes, protein_length)
        letters = self._records.read_many(chunk_start + begin, length)
        return [
            (frames.reverse_complement(dna) if reverse else dna).decode("ascii").upper()
            for dna, reverse in zip(letters, frames.is_reverse(codes).tolist(), strict=True)
        ]

    def _locate_chunks(self, chunks: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return the starts of chunks in the letters of all records, and their lengths."""
        reads = np.searchsorted(self._read_first_chunk, chunks, "right") - 1
        number = chunks - self._read_first_chunk[reads]
        read_start = self._read_offsets[reads]
        read_length = self._read_offsets[reads + 1] - read_start
        start, length = frames.locate_chunks(read_length, number, self.chunk_length_bp)
        return read_start + start, length

    def _name_chunks(self, chunks: Int64Array) -> list[str]:
        if not len(chunks):
            return []
        records = self.find_records(chunks)
        numbers = (chunks - self.record_first_chunk[records] + 1).tolist()
        # The chunks are neighbours, so one reading gets the ids of all their records.
        first = int(records[0])
        ids = self.record_ids(first, int(records[-1]) + 1)
        places = (records - first).tolist()
        return [chunk_id(ids[place], n) for place, n in zip(places, numbers, strict=True)]

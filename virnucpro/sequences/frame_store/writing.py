"""Building a store: one process reads the input once, a block of records at a time."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from virnucpro.backend.arrays import Int64Array, split_rows
from virnucpro.backend.interface import Alphabet
from virnucpro.checkpoints.whole_files import create_file, write_json
from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.errors import OutputError, count, writing_remedy
from virnucpro.sequences import frames
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frame_store.files import (
    CHANGED,
    FIRST_CODONS,
    FORMAT_VERSION,
    FRAME_FORMAT,
    FRAME_RULE,
    MANIFEST,
    READS_PER_RECORD,
    RECORD_FORMAT,
    digest_manifest,
)
from virnucpro.sequences.frame_store.reading import (
    FrameStore,
    RecordStore,
    open_frame_store,
    open_record_store,
)
from virnucpro.sequences.frame_store.stored_records import SequenceKind
from virnucpro.sequences.pairs import read_pairs
from virnucpro.sequences.records import NAME_OF_ROW, Record

logger = logging.getLogger(__name__)

# Item i of a text or table lies between offset i and offset i + 1; the first offset is 0.
_RECORD_FILES = (
    "headers.text",
    "header_offsets.int64",
    "records.text",
    "record_offsets.int64",
    "duplicate_ids.int64",  # the first record of each id that several records have
)
_FRAME_FILES = (
    "chunk_offsets.int64",  # a record's chunks
    "frame_offsets.int64",  # a chunk's rows
    "frame_codes.uint8",
    "proteins.text",
    "protein_offsets.int64",
    # For each row the first row with the same sequence.
    "representatives_dna.int64",
    "representatives_protein.int64",
)

# Letters to translate at a time: few enough for their tables to stay in the processor's cache.
_BLOCK_BP = 1 << 18
_DIGEST_BYTES = 16
# NumPy lets other threads compute. More than four would wait for the thread that reads and writes.
_NUM_THREADS = 4

_Call = TypeVar("_Call")


@dataclass(frozen=True)
class StoreSettings:
    """How files become the rows of a frame store.

    Attributes:
        chunk_length_bp: Length of a chunk.
        min_length_bp: Shorter records are kept, but get no chunks.
        rule: What of a chunk becomes a row.
        paired: Whether a record is a pair of reads; see `read_pairs`.
        allow_empty: Whether files without records are in order.
    """

    chunk_length_bp: int
    min_length_bp: int = 0
    rule: FrameRule = OPEN_RULE
    paired: bool = False
    allow_empty: bool = False

    @property
    def reads_per_record(self) -> int:
        """2 if a record is a pair of reads, otherwise 1."""
        return 2 if self.paired else 1


def build_frame_store(
    inputs: Sequence[str],
    directory: Path,
    settings: StoreSettings,
    read_before: FrameStore | None = None,
) -> FrameStore:
    """Write the open frames or stretches of files to `directory`, and return the opened store.

    Args:
        inputs: Paths of nucleotide FASTA or FASTQ files; `-` is standard input.
        directory: Created if it does not exist; a store in it is replaced.
        settings: How the files become rows.
        read_before: A store of the same files, whose records are taken instead.

    Raises:
        InputError: An input cannot be read.
        OutputError: The store cannot be written.
    """
    rule = settings.rule
    names = [*_RECORD_FILES, *_FRAME_FILES]
    if rule.kind == "stretches":
        names.append(FIRST_CODONS)
    with _open_writer(directory, names) as writer:
        # The files of the original's rule do not name it, so they are as they always were.
        manifest: dict[str, Any] = {
            "format": FRAME_FORMAT,
            "chunk_length_bp": settings.chunk_length_bp,
            "min_length_bp": settings.min_length_bp,
            **({} if rule == OPEN_RULE else {FRAME_RULE: str(rule)}),
            **({READS_PER_RECORD: settings.reads_per_record} if settings.paired else {}),
        }
        readers = [RecordReader(path, "dna", allow_empty=settings.allow_empty) for path in inputs]
        sources: Iterable[Iterable[Record]] = [read_pairs(readers)] if settings.paired else readers
        if read_before is not None:
            # Mates of a pair follow each other there as well.
            sources = [read_before.all_reads()]
        with ThreadPoolExecutor(_NUM_THREADS, "find rows") as pool:
            searches = (
                (pool.submit(frames.find_rows, letters, start, length, rule), len(start))
                for records in sources
                for letters, start, length in _cut_blocks(writer, records, settings)
            )
            for search, num_chunks in _start_ahead(searches, 2 * _NUM_THREADS):
                _write_rows(writer, search.result(), num_chunks)
        # Only now: the digest of an input is known when all of it was read.
        described = (_describe_input(reader) for reader in readers)
        manifest["inputs"] = read_before.inputs if read_before is not None else list(described)
        writer.finish(FrameStore, manifest, ("dna", "protein"))
    store = open_frame_store(directory)
    logger.info(
        "%s: %s, %s, %s",
        ", ".join(inputs),
        count(store.num_records, "record"),
        count(store.num_chunks, "chunk"),
        count(store.num_rows, NAME_OF_ROW[rule.kind]),
    )
    return store


def build_record_store(
    inputs: Sequence[str], directory: Path, *, alphabet: Alphabet, force_alphabet: bool = False
) -> RecordStore:
    """Write the records of sequence files to `directory`, and return the opened store.

    Args:
        inputs: Paths of sequence files; `-` is standard input.
        directory: Created if it does not exist; a store in it is replaced.
        alphabet: What the letters should be.
        force_alphabet: Whether to take the files for that, whatever their letters look like.

    Raises:
        InputError: An input cannot be read.
        OutputError: The store cannot be written.
    """
    with _open_writer(directory, (*_RECORD_FILES, "representatives_record.int64")) as writer:
        manifest: dict[str, Any] = {"format": RECORD_FORMAT, "inputs": []}
        for path in inputs:
            reader = RecordReader(path, alphabet, judge_alphabet=not force_alphabet)
            # The records are stored as a side effect: nothing is cut here.
            for _ in _write_records(writer, reader):
                pass
            manifest["inputs"].append(_describe_input(reader))
        writer.finish(RecordStore, manifest, ("record",))
    return open_record_store(directory)


@contextmanager
def _open_writer(directory: Path, names: Sequence[str]) -> Iterator[_StoreWriter]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Without its manifest an old store does not count while its files are overwritten.
        (directory / MANIFEST).unlink(missing_ok=True)
        with ExitStack() as stack:
            # New files in place of old ones: processes that still map the old store keep that.
            files = {name: stack.enter_context(create_file(directory / name)) for name in names}
            yield _StoreWriter(directory, files)
    except OSError as error:
        raise OutputError(
            f"{directory}: the frame store cannot be written ({error.strerror}); "
            f"{writing_remedy(error)}"
        ) from error


class _StoreWriter:
    """Appends to the files of a store, and writes the manifest last."""

    def __init__(self, directory: Path, files: Mapping[str, BinaryIO]) -> None:
        self._directory = directory
        self._files = files
        self._num_items = dict.fromkeys(files, 0)
        self._digests = {name: hashlib.sha256() for name in files}
        for name in files:
            # Item i lies between offset i and offset i + 1, so N items need N + 1 offsets.
            if name.endswith("_offsets.int64"):
                self.append(name, np.zeros(1, np.int64))

    def append(self, name: str, data: Any) -> None:
        """Append bytes to a text, or an array to a table of the same type."""
        self._files[name].write(data)
        # Digested while it is written, so the files are never read again for it.
        self._digests[name].update(data)

    def append_lengths(self, name: str, lengths: Int64Array) -> None:
        """Append the ends of items of these lengths to a table of offsets."""
        offsets = self._num_items[name] + np.cumsum(lengths, dtype=np.int64)
        self.append(name, offsets)
        self._num_items[name] += int(lengths.sum())

    def finish(
        self,
        store_class: type[FrameStore | RecordStore],
        manifest: dict[str, Any],
        kinds: Sequence[SequenceKind],
    ) -> None:
        """Write what needs the entire store: equal ids, equal sequences, and the manifest."""
        self._flush()
        # The store reads itself before its manifest exists. So equal texts are found with the code
        # that will read them.
        store = store_class(self._directory, manifest)
        first = _find_first_equal(store.record_ids, store.num_records)
        is_duplicate = np.zeros(len(first), np.bool_)
        is_duplicate[first[first != np.arange(len(first))]] = True
        # `np.unique` would import numpy.ma, which takes a tenth of the time of a short command.
        self.append("duplicate_ids.int64", np.flatnonzero(is_duplicate))
        for kind in kinds:
            self.append(f"representatives_{kind}.int64", _find_representatives(store, kind))
        self._flush()
        files = {
            name: {
                "num_bytes": os.fstat(file.fileno()).st_size,
                "sha256": self._digests[name].hexdigest(),
            }
            for name, file in self._files.items()
        }
        manifest |= {"format_version": FORMAT_VERSION, "files": files}
        # Last: the digest covers all other entries.
        manifest["sha256"] = digest_manifest(manifest)
        # The manifest makes the store count, so all files must be on the disk before it.
        write_json(self._directory / MANIFEST, manifest)

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())


def _write_records(
    writer: _StoreWriter, records: Iterable[Record], reads_per_record: int = 1
) -> Iterator[tuple[bytes, Int64Array]]:
    """Store reads; yield the letters and the lengths of each block, which has whole records."""
    for block in _take_blocks(records, reads_per_record):
        headers = [record.header.encode("utf-8", "surrogateescape") for record in block]
        letters = "".join([record.sequence for record in block]).encode("ascii")
        record_length = np.array([len(record.sequence) for record in block], np.int64)
        writer.append("headers.text", b"".join(headers))
        writer.append_lengths("header_offsets.int64", np.array([len(h) for h in headers], np.int64))
        writer.append("records.text", letters)
        writer.append_lengths("record_offsets.int64", record_length)
        yield letters, record_length


def _take_blocks(records: Iterable[Record], reads_per_record: int) -> Iterator[list[Record]]:
    block: list[Record] = []
    num_letters = 0
    for record in records:
        block.append(record)
        # One more, so that records without letters also fill a block in the end.
        num_letters += len(record.sequence) + 1
        if num_letters >= _BLOCK_BP and len(block) % reads_per_record == 0:
            yield block
            block, num_letters = [], 0
    if block:
        yield block


def _cut_blocks(
    writer: _StoreWriter, records: Iterable[Record], settings: StoreSettings
) -> Iterator[tuple[bytes, Int64Array, Int64Array]]:
    """Store reads and their chunks; yield letters, and where chunks start in them and how long."""
    reads_per_record = settings.reads_per_record
    # Few blocks of records are in memory at a time, so a file may be larger than the memory.
    # Both mates of a pair are in one block, because they are cut together.
    for letters, record_length in _write_records(writer, records, reads_per_record):
        chunks = frames.cut_records(
            record_length, settings.chunk_length_bp, settings.min_length_bp, reads_per_record
        )
        writer.append_lengths("chunk_offsets.int64", chunks.num_chunks)
        # One record can be longer than a block, so that its chunks are translated in blocks, too.
        cuts = np.flatnonzero(np.diff(chunks.start // _BLOCK_BP)) + 1
        for first, stop in pairwise([0, *cuts.tolist(), len(chunks.start)]):
            start, length = chunks.start[first:stop], chunks.length[first:stop]
            # Only the letters of these chunks are translated, and not the whole record again.
            low, high = start.min(initial=len(letters)), (start + length).max(initial=0)
            yield letters[low:high], start - low, length


def _start_ahead(calls: Iterable[_Call], num: int) -> Iterator[_Call]:
    """Yield started calls in their order, each when `num` later ones were started, too."""
    started: deque[_Call] = deque()
    for call in calls:
        started.append(call)
        if len(started) > num:
            yield started.popleft()
    yield from started


def _write_rows(writer: _StoreWriter, rows: frames.Rows, num_chunks: int) -> None:
    if rows.first_codon is not None:
        writer.append(FIRST_CODONS, rows.first_codon)
    # Chunks without a row count, too, with zero: offsets are by chunk.
    writer.append_lengths("frame_offsets.int64", np.bincount(rows.chunk, minlength=num_chunks))
    writer.append("frame_codes.uint8", rows.code)
    writer.append("proteins.text", rows.proteins)
    writer.append_lengths("protein_offsets.int64", rows.protein_length)


def _describe_input(reader: RecordReader) -> dict[str, Any]:
    return {
        "path": reader.path,
        "sha256": reader.sha256,
        "num_bytes": reader.num_bytes,
        "num_records": reader.num_records,
        # Not named if there are none, so that most files are as they always were.
        **({CHANGED: reader.num_changed} if reader.num_changed else {}),
    }


def _find_representatives(store: FrameStore | RecordStore, kind: SequenceKind) -> Int64Array:
    """Return for each row the first row with the same sequence: int64 (num_rows,)."""
    rows, copies = np.arange(store.num_rows), np.ones(store.num_rows, np.int64)
    if isinstance(store, FrameStore) and kind == "dna" and store.rule.kind == "stretches":
        # All stretches of a chunk have its DNA, so that each chunk is read once.
        num_stretches = np.diff(store.chunk_first_frame)
        rows = store.chunk_first_frame[:-1][num_stretches > 0]
        copies = num_stretches[num_stretches > 0]

    def read(start: int, stop: int) -> list[str]:
        return store.read_sequences(kind, rows[start:stop])

    return np.repeat(rows[_find_first_equal(read, len(rows))], copies)


def _find_first_equal(read: Callable[[int, int], list[str]], num_texts: int) -> Int64Array:
    """Return for each text the index of the first text that equals it: int64 (num_texts,).

    Texts are compared by 128-bit BLAKE2b digests, for which no collision is expected.

    Args:
        read: Returns the texts `start` to `stop - 1`.
        num_texts: Number of texts.
    """
    digests = np.empty((num_texts, _DIGEST_BYTES), np.uint8)
    for block in split_rows(0, num_texts):
        texts = read(block.start, block.stop)
        encoded = (text.encode("utf-8", "surrogateescape") for text in texts)
        joined = b"".join(
            [hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest() for data in encoded]
        )
        digests[block] = np.frombuffer(joined, np.uint8).reshape(-1, _DIGEST_BYTES)
    first = np.empty(num_texts, np.int64)
    # Digests are random bytes, so each of the 256 values has about the same share of the texts.
    leading = digests[:, 0].copy()
    # One leading byte at a time, because sorting all digests at once would need much memory.
    for byte in range(256):
        members = np.flatnonzero(leading == byte)
        # 16 bytes are two integers, which sort faster than bytes.
        words = digests[members].view(np.int64)
        # The sort is stable: the first of several equal texts stays first.
        order = np.lexsort((words[:, 0], words[:, 1]))
        is_new = np.ones(len(order), np.bool_)
        is_new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
        group = np.cumsum(is_new) - 1
        # The sort is stable, so the first member of a group has the lowest index.
        first[members[order]] = members[order[is_new]][group]
    return first

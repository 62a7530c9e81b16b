"""The store on disk: what it gives back, what it shares, and how it is known to be incomplete."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from virnucpro.backend import arrays
from virnucpro.errors import CheckpointError, InputError, OutputError
from virnucpro.sequences.frame_store import (
    FrameStore,
    RecordStore,
    SequenceSource,
    StoreSettings,
    build_frame_store,
    build_record_store,
    files,
    open_frame_store,
    open_record_store,
    writing,
)
from virnucpro.sequences.frame_store.files import TextFile
from virnucpro.sequences.records import Record

# Reverse frames that start 1 and 2 bases before the end, chunks without open frames, lower case,
# an ambiguous letter, a short and an empty record, equal sequences and equal ids.
RECORDS = [
    Record("a first", "ACGTTGCAACGNCATGCAAC"),
    Record("closed", "TAATTAATTAATTAATTAATTAATTAA"),
    Record("empty", ""),
    Record("b\udcff\té", "acgttgcaacgncatgcaac"),
    Record("short", "ACG"),
    Record("a second", "GCTGCTGCTGCTGCTGCTGCTGCTGCTGCA"),
    Record("short", "ACGTTG"),
    Record("a", ""),
]

BuildFrames = Callable[..., FrameStore]


def write_fasta(path: Path, records: Sequence[Record]) -> str:
    text = "".join(f">{header}\n{sequence}\n" for header, sequence in records)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


@pytest.fixture
def build(tmp_path: Path) -> BuildFrames:
    def build_store(records: Sequence[Record] = RECORDS, min_length_bp: int = 0) -> FrameStore:
        path = write_fasta(tmp_path / "input.fa", records)
        return build_frame_store(
            [path], tmp_path / "store", StoreSettings(12, min_length_bp=min_length_bp)
        )

    return build_store


def read_all(source: SequenceSource) -> list[str]:
    return source.get_many(np.arange(len(source)))


def check_representatives(source: SequenceSource) -> None:
    sequences = read_all(source)
    assert source.representatives.tolist() == [sequences.index(text) for text in sequences]


def test_records_come_back_as_they_were_read(build: BuildFrames) -> None:
    store = build()
    assert [store.reads(index)[0] for index in range(store.num_records)] == RECORDS
    assert store.record_ids(0, store.num_records) == [record.id for record in RECORDS]
    assert store.record_ids(3, 3) == []
    assert store.record_lengths.tolist() == [len(record.sequence) for record in RECORDS]


def test_rows_chunks_and_records_fit_together(build: BuildFrames) -> None:
    store = build()
    assert store.record_first_chunk.tolist() == [0, 2, 5, 5, 7, 8, 11, 12, 12]
    assert store.chunk_ids(0, 3) == ["a_chunk_1", "a_chunk_2", "closed_chunk_1"]
    assert store.chunk_sequences(5, 8) == ["ACGTTGCAACGN", "CGNCATGCAAC", "ACG"]
    assert store.chunk_first_frame[-1] == store.num_rows == len(store.frame_codes)
    assert store.num_chunks == 12
    ids = store.frame_ids(0, store.num_rows)
    of_short = slice(*store.chunk_first_frame[[7, 8]])
    assert ids[of_short] == ["short_chunk_1F1", "short_chunk_1R1"]
    assert store.sequences("dna").get_many(range(*of_short.indices(len(ids)))) == ["ACG", "CGT"]
    assert store.sequences("protein")[of_short.start] == "T"


def test_dna_reads_as_its_protein(build: BuildFrames) -> None:
    store = build([Record("r", "GCTGCAGCC" * 9)])
    assert store.num_rows == 6 * store.num_chunks
    for dna, protein in zip(*map(read_all, map(store.sequences, ("dna", "protein"))), strict=True):
        assert (len(dna) - 1) // 3 <= len(protein) <= len(dna) // 3


def test_any_order_of_rows_may_be_asked_for(build: BuildFrames) -> None:
    source = build().sequences("dna")
    sequences = read_all(source)
    rows = np.array([5, 0, 3, 3], np.int64)
    assert source.get_many(rows) == [sequences[row] for row in rows]
    assert source.get_many([]) == []
    assert [source[row] for row in range(len(source))] == sequences


def test_spans_of_a_text_far_apart_and_close_together(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    (tmp_path / "text").write_bytes(data)
    text = TextFile(tmp_path / "text")
    rng = np.random.default_rng(0)
    for spread, length in ((1024, 3), (64, 40)):
        start = rng.integers(0, spread, 8)
        lengths = rng.integers(0, length, 8)
        wanted = [data[begin : begin + n] for begin, n in zip(start, lengths, strict=True)]
        assert text.read_many(start, lengths) == wanted
    assert text.read_many(np.empty(0, np.int64), np.empty(0, np.int64)) == []


@pytest.mark.parametrize("kind", ["dna", "protein"])
def test_equal_sequences_are_found(kind: str, build: BuildFrames) -> None:
    source = build().sequences(kind)
    check_representatives(source)
    assert len(np.unique(source.representatives)) < len(source)


def test_equal_ids_are_found(build: BuildFrames) -> None:
    store = build()
    assert store.num_duplicate_ids == 2
    assert store.duplicate_ids(10) == ["a", "short"]
    assert store.duplicate_ids(1) == ["a"]


def test_short_records_are_kept_without_chunks(build: BuildFrames) -> None:
    store = build(min_length_bp=7)
    assert store.num_records == len(RECORDS)
    assert np.diff(store.record_first_chunk).tolist() == [2, 3, 0, 2, 0, 3, 0, 0]
    assert store.min_length_bp == 7


@pytest.mark.parametrize("sequence", ["", "CTAGCTAGCTAG", "NNNN", "A"])
def test_a_store_may_have_no_frames(sequence: str, build: BuildFrames) -> None:
    store = build([Record("a", sequence)])
    assert (store.num_records, store.num_rows) == (1, 0)
    for kind in ("dna", "protein"):
        assert read_all(store.sequences(kind)) == []
        assert store.sequences(kind).representatives.tolist() == []
    assert store.frame_ids(0, 0) == []


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    records = [
        Record(f"r{n}", "".join(rng.choices("CGAcgaN", k=length)))
        for n, length in enumerate([0, 30, 500, 7, 90, 2000, 1, 1, 0, 40])
    ]
    path = write_fasta(tmp_path / "input.fa", records)
    build_frame_store([path], tmp_path / "one", StoreSettings(50))
    monkeypatch.setattr(writing, "_BLOCK_BP", 64)
    monkeypatch.setattr(arrays, "_ROWS_AT_ONCE", 5)
    build_frame_store([path], tmp_path / "many", StoreSettings(50))
    assert read_files(tmp_path / "one") == read_files(tmp_path / "many")
    # A text that is longer than the system reads at once comes in pieces.
    monkeypatch.setattr(files, "_PREAD_BYTES", 7)
    store = open_frame_store(tmp_path / "one")
    assert list(store.all_reads()) == records
    assert store.record_ids(0, len(records)) == [record.id for record in records]


def read_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_several_inputs_are_one_store(tmp_path: Path) -> None:
    first = write_fasta(tmp_path / "a.fa", RECORDS[:3])
    second = write_fasta(tmp_path / "b.fa", RECORDS[3:])
    store = build_frame_store([first, second], tmp_path / "store", StoreSettings(12))
    assert [store.reads(index)[0] for index in range(store.num_records)] == RECORDS
    assert [(file["path"], file["num_records"]) for file in store.inputs] == [
        (first, 3),
        (second, 5),
    ]
    swapped = build_frame_store([second, first], tmp_path / "swapped", StoreSettings(12))
    assert store.input_digest != swapped.input_digest


def test_the_digest_of_one_input_is_that_of_sha256sum(build: BuildFrames, tmp_path: Path) -> None:
    store = build()
    digest = hashlib.sha256((tmp_path / "input.fa").read_bytes()).hexdigest()
    assert store.input_digest == f"sha256:{digest}"


def read_in_child(source: SequenceSource, queue: multiprocessing.Queue[list[str]]) -> None:
    queue.put(read_all(source))


@pytest.mark.slow
def test_a_spawned_process_reads_the_same(build: BuildFrames) -> None:
    source = build().sequences("dna")
    sequences = read_all(source)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(source, queue))
    child.start()
    assert queue.get(timeout=60) == sequences
    child.join()
    assert len(pickle.dumps(source)) < 1000


def test_records_alone(tmp_path: Path) -> None:
    records = [Record("p1", "MKTAYi*"), Record("p2", "mktayi"), Record("p1", "W*W*")]
    path = write_fasta(tmp_path / "input.faa", records)
    store = build_record_store([path], tmp_path / "store", alphabet="protein")
    source = store.sequences()
    assert read_all(source) == ["MKTAYI", "MKTAYI", "W*W"]
    check_representatives(source)
    assert store.duplicate_ids(9) == ["p1"]
    assert isinstance(open_record_store(tmp_path / "store"), RecordStore)


# Incomplete, damaged and unwritable stores


def test_a_build_that_fails_leaves_no_complete_store(build: BuildFrames, tmp_path: Path) -> None:
    build()
    with pytest.raises(InputError, match="record 'bad'"):
        build([*RECORDS, Record("bad", "ACGT!")])
    with pytest.raises(CheckpointError, match=r"no complete frame store .*manifest\.json"):
        open_frame_store(tmp_path / "store")


@pytest.mark.slow
def test_a_killed_build_leaves_no_complete_store(build: BuildFrames, tmp_path: Path) -> None:
    build()
    script = (
        "import sys; from pathlib import Path;"
        "from virnucpro.sequences.frame_store import StoreSettings, build_frame_store;"
        "build_frame_store(['-'], Path(sys.argv[1]), StoreSettings(12))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "store"], stdin=subprocess.PIPE
    )
    assert child.stdin is not None
    # More than a block, so that its files are begun; the input is then still open.
    for _ in range(64):
        child.stdin.write(b">a\n" + b"ACGT" * 4096 + b"\n")
    child.stdin.flush()
    child.kill()
    child.wait()
    child.stdin.close()
    with pytest.raises(CheckpointError, match="no complete frame store"):
        open_frame_store(tmp_path / "store")
    assert build().num_records == len(RECORDS)


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: holds no complete frame store"):
        open_frame_store(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["records.text", "frame_codes.uint8", "chunk_offsets.int64"])
def test_a_file_that_changed_size_is_named(name: str, build: BuildFrames) -> None:
    directory = build().directory
    with (directory / name).open("ab") as file:
        file.write(b"12345678")
    with pytest.raises(CheckpointError, match=f"{name} changed size"):
        open_frame_store(directory)
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        open_frame_store(directory)


@pytest.mark.parametrize("name", ["records.text", "frame_codes.uint8", "representatives_dna.int64"])
def test_a_file_that_changed_at_equal_size_is_named(name: str, build: BuildFrames) -> None:
    directory = build().directory
    content = bytearray((directory / name).read_bytes())
    content[-1] ^= 1
    (directory / name).write_bytes(content)
    open_frame_store(directory)
    with pytest.raises(CheckpointError, match=f"{name} changed since .*--resume"):
        open_frame_store(directory, verify=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "virnucpro-frame-store", "format_version": 2}']
)
def test_a_file_that_is_no_manifest_is_refused(text: str, build: BuildFrames) -> None:
    directory = build().directory
    (directory / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not the manifest"):
        open_frame_store(directory)


def test_another_version_is_refused(build: BuildFrames) -> None:
    directory = build().directory
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    with pytest.raises(
        CheckpointError, match=r"version 1, wanted virnucpro-frame-store version 2.*--resume"
    ):
        open_frame_store(directory)


def test_a_store_of_the_other_kind_is_refused(build: BuildFrames) -> None:
    with pytest.raises(CheckpointError, match="found virnucpro-frame-store version 2, wanted"):
        open_record_store(build().directory)


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_full_disk_is_named(num_bytes: int, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "input.fa", RECORDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow over this size, which fails within write() as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        with pytest.raises(OutputError, match=r"store: the frame store .*File too large"):
            build_frame_store([fasta], tmp_path / "store", StoreSettings(12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "store" / "manifest.json").exists()

"""A record may be a pair of reads: its chunks, its name, and files that do not fit together."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from virnucpro.config import PredictConfig
from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.errors import InputError, UsageError
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store

CHUNK_LENGTH_BP = 120


def make_mates(num_pairs: int) -> list[list[str]]:
    rng = random.Random(6)
    return [
        ["".join(rng.choices("ACGT", k=rng.choice([0, 40, 150, 300]))) for _ in range(2)]
        for _ in range(num_pairs)
    ]


MATES = make_mates(40)


def write_fastq(path: Path, reads: list[tuple[str, str]]) -> str:
    path.write_text("".join(f"@{name}\n{dna}\n+\n{'I' * len(dna)}\n" for name, dna in reads))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The first mates and the second mates."""
    return [
        write_fastq(
            tmp_path / f"reads_{mate}.fq",
            [(f"r{number}/{mate} x", pair[mate - 1]) for number, pair in enumerate(MATES)],
        )
        for mate in (1, 2)
    ]


@pytest.fixture
def interleaved(tmp_path: Path) -> str:
    reads = [
        (f"r{number}/{mate} x", dna)
        for number, pair in enumerate(MATES)
        for mate, dna in enumerate(pair, 1)
    ]
    return write_fastq(tmp_path / "both.fq", reads)


def build(inputs: list[str], directory: Path, **settings) -> FrameStore:
    return build_frame_store(inputs, directory, StoreSettings(CHUNK_LENGTH_BP, **settings))


@pytest.mark.parametrize("rule", [OPEN_RULE, FrameRule("stretches", 2, 10)], ids=str)
def test_a_pair_is_a_record_with_the_chunks_of_both_mates(
    files: list[str], interleaved: str, tmp_path: Path, rule: FrameRule
) -> None:
    alone = build([interleaved], tmp_path / "alone", rule=rule)
    store = build(files, tmp_path / "pairs", rule=rule, paired=True)
    assert store.num_records == len(MATES)
    assert [store.reads(index) for index in range(store.num_records)] == [
        [(f"r{number}/{mate} x", dna) for mate, dna in enumerate(pair, 1)]
        for number, pair in enumerate(MATES)
    ]
    assert store.record_ids(0, store.num_records) == [f"r{n}" for n in range(len(MATES))]
    assert store.record_lengths.tolist() == [len(a) + len(b) for a, b in MATES]
    assert store.num_duplicate_ids == 0
    # Chunks and rows are those of the reads, and only what belongs to a record differs.
    assert store.chunk_sequences(0, store.num_chunks) == alone.chunk_sequences(0, alone.num_chunks)
    assert store.record_first_chunk.tolist() == alone.record_first_chunk[::2].tolist()
    rows = np.arange(store.num_rows)
    for kind in ("dna", "protein"):
        assert store.read_sequences(kind, rows) == alone.read_sequences(kind, rows)
    numbers = np.concatenate([np.arange(n) for n in np.diff(store.record_first_chunk)]) + 1
    assert [int(name.rsplit("_", 1)[1]) for name in store.chunk_ids(0, store.num_chunks)] == list(
        numbers
    )


def test_one_file_with_both_mates_gives_the_same_store(
    files: list[str], interleaved: str, tmp_path: Path
) -> None:
    two = build(files, tmp_path / "two", paired=True)
    one = build([interleaved], tmp_path / "one", paired=True)
    for path in two.directory.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (one.directory / path.name).read_bytes()
    assert [file["num_records"] for file in two.inputs] == [len(MATES)] * 2
    assert [file["num_records"] for file in one.inputs] == [2 * len(MATES)]


def test_several_libraries_follow_each_other(files: list[str], tmp_path: Path) -> None:
    store = build([*files, *files], tmp_path / "store", paired=True)
    assert store.num_records == 2 * len(MATES)
    assert store.reads(len(MATES)) == store.reads(0)


def test_the_length_of_a_pair_is_that_of_both_mates(files: list[str], tmp_path: Path) -> None:
    store = build(files, tmp_path / "store", paired=True, min_length_bp=190)
    is_cut = np.diff(store.record_first_chunk) > 0
    assert is_cut.tolist() == [len(first) + len(second) >= 190 for first, second in MATES]


def test_pairs_and_single_reads_are_never_taken_for_each_other(
    interleaved: str, tmp_path: Path
) -> None:
    single = build([interleaved], tmp_path / "single")
    paired = build([interleaved], tmp_path / "paired", paired=True)
    assert single.input_digest != paired.input_digest


def test_files_in_the_wrong_order_are_explained(files: list[str], tmp_path: Path) -> None:
    wanted = r"pair 1 has the ids 'r0/2' and 'r0/1'; the mate /1 comes first; change the order of"
    with pytest.raises(InputError, match=wanted):
        build(files[::-1], tmp_path / "store", paired=True)


def test_a_missing_mate_is_named(files: list[str], tmp_path: Path) -> None:
    Path(files[1]).write_text("\n".join(Path(files[1]).read_text().splitlines()[:-4]) + "\n")
    with pytest.raises(InputError, match=r"reads_2.fq: pair 40, 'r39/1', lacks a mate"):
        build(files, tmp_path / "store", paired=True)


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [("x", "x", True), ("x/1", "x/2", True), ("x.1", "x.2", True), ("x", "y", False)],
)
def test_mates_have_one_id(tmp_path: Path, first: str, second: str, fits: bool) -> None:
    path = write_fastq(tmp_path / "both.fq", [(f"{first} 1:N:0", "ACG"), (f"{second} 2:N:0", "A")])
    if fits:
        assert build([path], tmp_path / "store", paired=True).num_records == 1
        return
    with pytest.raises(InputError, match=r"both.fq: pair 1 has the ids 'x' and 'y'"):
        build([path], tmp_path / "store", paired=True)


def test_files_of_mates_come_in_twos(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="paired: found 3 inputs"):
        PredictConfig(inputs=("a", "b", "c"), output_dir=tmp_path, paired=True)

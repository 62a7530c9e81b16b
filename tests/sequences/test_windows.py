"""Windows of long records: they cover each record, overlap by half, and are shared by equals."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from virnucpro.sequences import windows
from virnucpro.sequences.frame_store import RecordStore, build_record_store
from virnucpro.sequences.windows import WindowSource

LENGTHS = [3, 10, 11, 15, 16, 47, 0, 1]


@pytest.fixture
def sequences() -> list[str]:
    """Sequences of these lengths; the longest comes twice."""
    rng = random.Random(0)
    found = ["".join(rng.choices("ACDEFGHIKLMN", k=length)) for length in LENGTHS]
    return [*found, found[5]]


@pytest.fixture
def store(sequences: list[str], tmp_path: Path) -> RecordStore:
    path = tmp_path / "in.faa"
    path.write_text("".join(f">r{n}\n{text.lower()}\n" for n, text in enumerate(sequences)))
    return build_record_store([str(path)], tmp_path / "store", alphabet="protein")


def plain_windows(sequence: str, size: int) -> list[str]:
    windows = [sequence[:size]]
    start = 0
    while start + size < len(sequence):
        start += size // 2
        windows.append(sequence[start : start + size])
    return windows


@pytest.mark.parametrize("size", [2, 3, 10, 47, 100])
def test_windows_are_those_of_the_plain_rule(
    size: int, store: RecordStore, sequences: list[str]
) -> None:
    source = WindowSource(store, size)
    wanted = [plain_windows(text, size) for text in sequences]
    texts = source.get_many(np.arange(len(source)))
    assert texts == [window for windows in wanted for window in windows]
    assert np.diff(source.first_windows).tolist() == [len(windows) for windows in wanted]
    assert source.lengths.tolist() == [len(text) for text in texts]
    ours = np.arange(source.first_windows[8], source.first_windows[9])
    assert source.get_many(source.representatives[ours]) == plain_windows(sequences[5], size)
    assert source.representatives[ours].tolist() == list(range(*source.first_windows[[5, 6]]))


def test_without_a_size_a_record_is_one_window(store: RecordStore, sequences: list[str]) -> None:
    source = WindowSource(store, None)
    assert source.get_many(np.arange(len(source))) == sequences
    assert source.representatives.tolist() == store.sequences().representatives.tolist()


def test_blocks_of_records_have_few_windows(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "_WINDOWS_AT_ONCE", 4)
    source = WindowSource(store, 10)
    records = np.array([0, 1, 2, 3, 5, 7, 8])
    blocks = list(source.split_records(records))
    assert np.concatenate(blocks).tolist() == records.tolist()
    # The two records of 47 letters have 9 windows each, more than a block may have.
    assert [block.tolist() for block in blocks] == [[0, 1], [2, 3], [5], [7], [8]]


def test_another_process_reads_the_same(store: RecordStore) -> None:
    source = WindowSource(store, 10)
    other = pickle.loads(pickle.dumps(source))
    rows = np.array([7, 0, 3])
    assert other.get_many(rows) == source.get_many(rows)
    assert len(pickle.dumps(source)) < 1000

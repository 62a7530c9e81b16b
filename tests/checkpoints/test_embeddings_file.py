"""The file that embed writes: of the parts' format, in one go, on any disk."""

from __future__ import annotations

import fcntl
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.embeddings_file import create_hdf5, write_embeddings
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import read_identity
from virnucpro.errors import CheckpointError, OutputError

IDENTITY = Identity(
    input_digest="sha256:11",
    backend="toy",
    backend_version="1.0",
    weights_identity="sha256:22",
    precision="fp32",
    chunk_length_bp=0,
    pooling="mean",
    embedding_dim=5,
)
NUM_ROWS = 1_000
ROWS = np.arange(0, 2 * NUM_ROWS, 2)
IDS = [f"record_{row}" for row in ROWS]
EMBEDDINGS = np.random.default_rng(0).normal(size=(NUM_ROWS, 5)).astype(np.float32)


def blocks(num_rows: int = 300) -> Iterator[np.ndarray[Any, Any]]:
    return (EMBEDDINGS[start : start + num_rows] for start in range(0, NUM_ROWS, num_rows))


def test_plain_h5py_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    write_embeddings(path, ROWS, IDS, blocks(), IDENTITY)
    with h5py.File(path) as file:
        assert sorted(file) == ["embeddings", "ids", "rows"]
        assert file["rows"][:].tolist() == ROWS.tolist()
        assert file["ids"].asstr()[:].tolist() == IDS
        np.testing.assert_array_equal(file["embeddings"][:], EMBEDDINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def test_it_is_a_part(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    write_embeddings(path, ROWS, IDS, blocks(), IDENTITY)
    assert read_identity(path) == IDENTITY
    np.testing.assert_array_equal(EmbeddingReader([path]).gather(ROWS[::-1]), EMBEDDINGS[::-1])


def test_hdf5_takes_no_lock(tmp_path: Path) -> None:
    """Some file systems have none, and a lock of this test shows the library's."""
    with create_hdf5(tmp_path / "x.h5") as file, (tmp_path / "x.h5").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.attrs["is"] = "open"


def test_it_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    write_embeddings(path, ROWS[:0], [], [], IDENTITY)
    assert EmbeddingReader([path]).num_rows == 0
    with h5py.File(path) as file:
        assert file["embeddings"].shape == (0, 5)


def test_ids_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    raw = [b"latin-\xe9", "é→".encode(), b"long" * 300_000]
    ids = [name.decode("utf-8", "surrogateescape") for name in raw]
    write_embeddings(path, ROWS[:3], ids, [EMBEDDINGS[:3]], IDENTITY)
    with h5py.File(path) as file:
        assert file["ids"][:].tolist() == raw


def test_it_replaces_an_older_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    path.write_text("older")

    def blocks_of_a_damaged_part() -> Iterator[np.ndarray[Any, Any]]:
        yield EMBEDDINGS[:300]
        raise CheckpointError("a part has gone")

    with pytest.raises(CheckpointError, match="a part has gone"):
        write_embeddings(path, ROWS, IDS, blocks_of_a_damaged_part(), IDENTITY)
    assert path.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    write_embeddings(path, ROWS, IDS, blocks(), IDENTITY)
    assert read_identity(path) == IDENTITY


def test_no_room(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"written \(File too large; [\d,]+ bytes are needed"):
            write_embeddings(tmp_path / "out.h5", ROWS, IDS, blocks(), IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []

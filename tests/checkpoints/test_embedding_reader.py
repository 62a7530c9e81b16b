from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.checkpoints.test_parts import IDENTITY, run_python, write
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import finished_rows, part_name, write_part
from virnucpro.errors import CheckpointError


def test_gather_returns_what_h5py_reads_in_the_order_asked(tmp_path):
    random_order = np.random.default_rng(5).permutation(1000)
    embeddings = np.random.default_rng(6).standard_normal((1000, 4), np.float32)
    parts = [
        write_part(tmp_path, part_name(0, n), rows, embeddings[rows], IDENTITY)
        for n, rows in enumerate(np.array_split(random_order, 7))
    ]
    parts.insert(3, write(tmp_path, [], number=7))
    plain = {}
    for path in parts:
        with h5py.File(path) as file:
            plain |= dict(zip(file["rows"][:].tolist(), file["embeddings"][:], strict=True))
    reader = EmbeddingReader(parts)
    assert (reader.num_rows, reader.embedding_dim) == (1000, 4)
    asked = np.random.default_rng(7).integers(0, 1000, 3000)
    gathered = reader.gather(asked)
    assert gathered.dtype == np.float32
    np.testing.assert_array_equal(gathered, [plain[row] for row in asked.tolist()])
    assert finished_rows(parts).tolist() == list(range(1000))


def test_of_parts_with_the_same_row_the_first_counts(tmp_path):
    parts = [
        write_part(tmp_path, part_name(0, n), rows, np.full((2, 4), n, np.float32), IDENTITY)
        for n, rows in enumerate(np.array([[3, 1], [1, 2], [2, 3]]))
    ]
    reader = EmbeddingReader(parts)
    assert reader.gather(np.array([1, 2, 3]))[:, 0].tolist() == [0, 1, 0]
    assert finished_rows(parts).tolist() == [1, 2, 3]


def test_rows_that_are_nowhere_are_named(tmp_path):
    reader = EmbeddingReader([write(tmp_path, [1, 5])])
    with pytest.raises(CheckpointError, match=r"2 of 3 rows .*first: row 3"):
        reader.gather(np.array([1, 3, 9]))
    with pytest.raises(CheckpointError, match="1 of 1 row is in no part"):
        EmbeddingReader([]).gather(np.array([0]))


def test_a_part_that_vanishes_is_explained(tmp_path):
    path = write(tmp_path, [1, 5])
    reader = EmbeddingReader([path])
    path.unlink()
    with pytest.raises(CheckpointError, match=str(path)):
        reader.gather(np.array([1]))


def test_a_part_that_is_cut_off_is_explained(tmp_path):
    path = write(tmp_path, [1, 5])
    reader = EmbeddingReader([path])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert reader.gather(np.array([1])).shape == (1, 4)
    with pytest.raises(CheckpointError, match=f"{path}: ends before the embedding at line 1"):
        reader.gather(np.array([1, 5]))


def test_parts_of_different_sizes_do_not_mix(tmp_path):
    other = replace(IDENTITY, embedding_dim=2)
    parts = [
        write(tmp_path, [1]),
        write_part(tmp_path, part_name(0, 1), np.array([2]), np.ones((1, 2), np.float32), other),
    ]
    with pytest.raises(CheckpointError, match=r"\[2, 4\]"):
        EmbeddingReader(parts)


READ_MANY = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_parts import *
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
parts = collect_parts(Path(sys.argv[2]), IDENTITY)
rows = np.random.default_rng(1).permutation(4 * len(parts))
np.testing.assert_array_equal(EmbeddingReader(parts).gather(rows), embed(rows))
print(len(parts))
"""


@pytest.mark.slow
def test_many_parts_need_few_open_files(tmp_path):
    for number in range(100):
        write(tmp_path, np.arange(4) + 4 * number, number)
    result = run_python(READ_MANY, Path(__file__).parent, tmp_path)
    assert result.stdout == "100\n", result.stderr


def test_ids_come_with_their_rows_from_any_number_of_parts(tmp_path):
    parts = [write(tmp_path, [5, 3], ids=["e", "c\udcff"]), write(tmp_path, [4], 1, ids=["d"])]
    reader = EmbeddingReader(parts)
    assert reader.gather_ids(np.array([3, 4, 5, 3])) == ["c\udcff", "d", "e", "c\udcff"]


def test_a_part_without_ids_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="ids is missing"):
        EmbeddingReader([write(tmp_path, [1])]).gather_ids(np.array([1]))

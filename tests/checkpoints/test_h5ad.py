from __future__ import annotations

import h5py
import numpy as np
import pytest

from virnucpro.checkpoints.h5ad import write_h5ad

X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def path(tmp_path):
    """A file whose rows and annotations come in two blocks."""
    write_h5ad(
        tmp_path / "x.h5ad",
        X.shape,
        (X[rows] for rows in (slice(0, 3), slice(3, 4))),
        obs=(
            {"name": names, "score": np.array(scores, np.float32)}
            for names, scores in ((["a", "b\udcff", "c"], [1, 2, 3]), (["d"], [4]))
        ),
        var={"feature": ["x", "y", "z"]},
        uns={"made_by": {"precision": "fp32", "dim": 3}},
    )
    return tmp_path / "x.h5ad"


def test_blocks_become_one_matrix_with_annotations(path):
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["X"], X)
        assert file["X"].attrs["encoding-type"] == "array"
        assert file["obs/name"][:].tolist() == [b"a", b"b\xff", b"c", b"d"]
        assert file["obs/score"][:].tolist() == [1, 2, 3, 4]
        # As AnnData's format has it for every column.
        kinds = {name: file[name].attrs["encoding-type"] for name in ("obs/name", "obs/score")}
        assert kinds == {"obs/name": "string-array", "obs/score": "array"}
        assert file["obs"].attrs["_index"] == "name"
        assert file["obs"].attrs["column-order"].tolist() == ["score"]
        assert file["var"].attrs["column-order"].tolist() == []
        assert file["uns/made_by/dim"][()] == 3
    assert [found.name for found in path.parent.iterdir()] == ["x.h5ad"]


def test_anndata_reads_it(tmp_path):
    anndata = pytest.importorskip("anndata")
    write_h5ad(
        tmp_path / "x.h5ad",
        X.shape,
        [X],
        obs=[{"name": list("abcd")}],
        var={"f": list("xyz")},
        uns={},
    )
    table = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert table.obs_names.tolist() == list("abcd")
    assert table.var_names.tolist() == list("xyz")
    np.testing.assert_array_equal(table.X, X)

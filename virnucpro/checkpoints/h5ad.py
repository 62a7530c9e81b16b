"""Writing an AnnData file block by block.

We do not use the anndata package: it depends on pandas and more, and it would need dask to write a
matrix that does not fit in memory. The layout is that of
https://anndata.readthedocs.io/en/stable/fileformat-prose.html, with the encoding versions of
anndata 0.8 and later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virnucpro.backend.arrays import Float32Array
from virnucpro.checkpoints.embeddings_file import create_hdf5, reserve_dataset, write_blocks
from virnucpro.checkpoints.hdf5 import encode_strings
from virnucpro.checkpoints.whole_files import replace_when_whole

Column = Sequence[str] | np.ndarray[Any, Any]

# More than the names and scores of a frame need.
_OBS_BYTES_PER_ROW = 1024


def write_h5ad(
    path: Path,
    shape: tuple[int, int],
    blocks: Iterable[Float32Array],
    *,
    obs: Iterable[Mapping[str, Column]],
    var: Mapping[str, Column],
    uns: Mapping[str, Any],
) -> None:
    """Write the matrix `X` from blocks of its rows, with annotations.

    Args:
        path: The file to write or to replace.
        shape: The shape of `X`, which is float32.
        blocks: The rows of `X`, in blocks.
        obs: Blocks of the columns that describe rows, text or numbers; the first column names them.
        var: The columns that describe features; the first column names them.
        uns: Anything else: text, numbers, and dicts of these.

    Raises:
        OutputError: The file cannot be written; no incomplete file is left.
    """
    num_bytes = shape[0] * (4 * shape[1] + _OBS_BYTES_PER_ROW)
    with replace_when_whole(path, num_bytes) as temporary:
        with create_hdf5(temporary) as file:
            _mark(file, "anndata", "0.1.0")
            _write_frame(file, "obs", shape[0], obs)
            _write_frame(file, "var", shape[1], [var])
            _write_dict(file, "uns", uns)
            offset = reserve_dataset(file, "X", shape)
            _mark(file["X"], "array", "0.2.0")
        write_blocks(temporary, offset, blocks)


def _mark(item: Any, kind: str, version: str) -> None:
    item.attrs.update({"encoding-type": kind, "encoding-version": version})


def _write_frame(
    file: h5py.File, name: str, num_rows: int, blocks: Iterable[Mapping[str, Column]]
) -> None:
    # The order of creation is the order of the columns, which is read back below.
    group = file.create_group(name, track_order=True)
    _mark(group, "dataframe", "0.2.0")
    start = 0
    for columns in blocks:
        for column, values in columns.items():
            is_numeric = isinstance(values, np.ndarray)
            if column not in group:
                dtype = getattr(values, "dtype", h5py.string_dtype())
                group.create_dataset(column, (num_rows,), dtype)
                _mark(group[column], "array" if is_numeric else "string-array", "0.2.0")
            stop = start + len(values)
            group[column][start:stop] = values if is_numeric else encode_strings(values)
        start = stop
    index, *others = group
    # By this attribute, anndata finds the names of the rows.
    group.attrs["_index"] = index
    # With a type, because an empty list has none, and there may be no other column.
    group.attrs.create("column-order", others, dtype=h5py.string_dtype())


def _write_dict(parent: h5py.Group, name: str, values: Mapping[str, Any]) -> None:
    group = parent.create_group(name)
    _mark(group, "dict", "0.1.0")
    for key, value in values.items():
        if isinstance(value, Mapping):
            _write_dict(group, key, value)
        else:
            group[key] = value
            _mark(group[key], "string" if isinstance(value, str) else "numeric-scalar", "0.2.0")

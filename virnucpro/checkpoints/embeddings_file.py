"""Writing large HDF5 files block by block, such as the result of `embed`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import h5py

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.checkpoints.hdf5 import encode_strings
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import FORMAT_NAME, FORMAT_VERSION
from virnucpro.checkpoints.whole_files import replace_when_whole


def write_embeddings(
    path: Path,
    rows: Int64Array,
    ids: Sequence[str],
    blocks: Iterable[Float32Array],
    identity: Identity,
    lengths: Mapping[str, Int64Array] | None = None,
) -> None:
    """Write the embeddings of an entire input as one part; only one block is in memory at a time.

    Args:
        path: The file to write or to replace.
        rows: int64 (N,), the position of each sequence in the input.
        ids: Ids of the N sequences.
        blocks: The embeddings in the order of `rows`: float32 (n, E) each, N rows together.
        identity: What determined the embeddings.
        lengths: More datasets, by name: int64 (N,) each.

    Raises:
        OutputError: The file cannot be written; no incomplete file is left.
    """
    id_bytes = encode_strings(ids)
    columns = {"rows": rows, **(lengths or {})}
    # 56 covers what HDF5 needs for a string: its 16 bytes, and its place in a heap.
    bytes_per_row = 4 * identity.embedding_dim + 8 * len(columns) + 56
    num_bytes = len(rows) * bytes_per_row + sum(map(len, id_bytes))
    with replace_when_whole(path, num_bytes) as temporary:
        with create_hdf5(temporary) as file:
            file.attrs.update(format=FORMAT_NAME, format_version=FORMAT_VERSION, **asdict(identity))
            for name, values in columns.items():
                file.create_dataset(name, data=values, dtype="<i8")
            file.create_dataset("ids", (len(rows),), h5py.string_dtype(), id_bytes)
            offset = reserve_dataset(file, "embeddings", (len(rows), identity.embedding_dim))
        write_blocks(temporary, offset, blocks)


def create_hdf5(path: Path) -> h5py.File:
    """Return a new HDF5 file, open for writing, in place of any other at `path`."""
    # Without the library's lock, which fails where the file system has none. Nobody else knows a
    # file that is not whole yet.
    return h5py.File(path, "w", locking=False)


def reserve_dataset(file: h5py.File, name: str, shape: tuple[int, int]) -> int:
    """Create a float32 dataset without content, and return the offset of its bytes in the file."""
    reserved = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    # Only a dataset that is allocated at once has an offset before anything is written to it.
    reserved.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    # Otherwise HDF5 would first write zeros: the whole dataset twice.
    reserved.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # HDF5 gives an empty dataset no offset.
    return file.create_dataset(name, shape, "<f4", dcpl=reserved).id.get_offset() or 0


def write_blocks(path: Path, offset: int, blocks: Iterable[Float32Array]) -> None:
    """Write blocks of a reserved dataset one after the other, from `offset` on.

    HDF5 2.0 may crash the process when the disk is full, so that Python writes the bytes.
    """
    with path.open("r+b") as file:
        file.seek(offset)
        for block in blocks:
            file.write(block.tobytes())

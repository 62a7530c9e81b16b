"""The file that `embed` ends with: the embeddings of a whole input, written block by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import h5py

from virnucpro.checkpoints.hdf5 import encode_strings
from virnucpro.checkpoints.migrations import FORMAT_VERSION
from virnucpro.checkpoints.parts import FORMAT_NAME, FloatArray, Identity, IntArray
from virnucpro.checkpoints.whole_files import replace_when_whole


def write_embeddings(
    path: Path,
    rows: IntArray,
    ids: Sequence[str],
    blocks: Iterable[FloatArray],
    identity: Identity,
) -> None:
    """Write one file of the parts' format, in the memory of one block; it replaces an older one.

    Args:
        path: The file to write.
        rows: int64 (N,), the position of each sequence in the input.
        ids: The N sequences' ids; bytes that were not UTF-8 (surrogate escapes) stay as they were.
        blocks: float32 (n, E) each, N rows in all, in the order of `rows`.
        identity: What made the embeddings.

    Raises:
        OutputError: The file cannot be written; no half-written file is left.
    """
    id_bytes = encode_strings(ids)
    num_bytes = len(rows) * (4 * identity.embedding_dim + 64) + sum(map(len, id_bytes))
    # HDF5 2.0 may crash the process when it closes a file on a full disk, so that the room is
    # reserved first, and the embeddings are written without the library.
    with replace_when_whole(path, num_bytes) as temporary:
        offset = _write_frame(temporary, rows, id_bytes, identity)
        with temporary.open("r+b") as file:
            file.seek(offset)
            for block in blocks:
                file.write(block.tobytes())


def reserve_dataset(file: h5py.File, name: str, shape: tuple[int, int]) -> int:
    """Make a float32 dataset without writing it, and return where in the file its bytes belong."""
    reserved = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    reserved.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    reserved.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # An empty dataset has no place in the file.
    return file.create_dataset(name, shape, "<f4", dcpl=reserved).id.get_offset() or 0


def _write_frame(path: Path, rows: IntArray, ids: Sequence[bytes], identity: Identity) -> int:
    """Write everything but the embeddings, and return where in the file these belong."""
    with h5py.File(path, "w", locking="best-effort") as file:
        file.attrs.update(format=FORMAT_NAME, format_version=FORMAT_VERSION, **asdict(identity))
        file.create_dataset("rows", data=rows, dtype="<i8")
        file.create_dataset("ids", (len(rows),), h5py.string_dtype(), list(ids))
        return reserve_dataset(file, "embeddings", (len(rows), identity.embedding_dim))

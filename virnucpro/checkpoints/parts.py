"""Parts: the HDF5 files that hold finished embeddings. FORMAT.md describes them.

A part is written whole, checked by its digest, and never changed. The rows in valid parts are
finished; a run that resumes computes all other rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.backend.digests import read_sha256
from virnucpro.checkpoints import hdf5
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.whole_files import link_or_copy, replace_when_whole
from virnucpro.config.frame_rule import FrameRule
from virnucpro.errors import CheckpointError, OutputError, UsageError, brief, count

FORMAT_NAME = "virnucpro-embeddings"
FORMAT_VERSION = 3
"""0 is the original's `.pt` files, 1 the optimized fork's v1.0, 2 its v2.0: see FORMAT.md."""

logger = logging.getLogger(__name__)


class FormatVersionError(CheckpointError):
    """A checkpoint is intact, but has another version of the format."""


class UnfinishedError(CheckpointError):
    """A part has no mark: its process was stopped before it wrote one, or the mark was lost."""


def part_name(rank: int, number: int) -> str:
    """Return the file name of a rank's part; `number` counts from 0."""
    return f"part-{rank:05d}-{number:06d}.h5"


def next_part_number(directory: Path, rank: int) -> int:
    """Return the first number that `rank` has not used; parts set aside keep theirs."""
    # The pattern has no end, so that `part-....h5.damaged` and `.unfinished` count as well.
    pattern = re.compile(rf"part-{rank:05d}-(\d{{6}})\.h5")
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return max((int(match[1]) + 1 for match in map(pattern.match, names) if match), default=0)


def write_part(
    directory: Path,
    name: str,
    rows: Int64Array,
    embeddings: Float32Array,
    identity: Identity,
    ids: Sequence[str] | None = None,
) -> Path:
    """Write a part, mark it done, and return its path. It then survives a crash of the machine.

    Args:
        directory: Created if it does not exist.
        name: The file's name, from `part_name`.
        rows: int64 (N,), the row of each embedding; no row occurs twice.
        embeddings: float32 (N, E).
        identity: What determined the embeddings.
        ids: Names of the N sequences, for files that are read without a frame store.

    Raises:
        CheckpointError: The part exists already.
        OutputError: The part cannot be written; no incomplete part is left.
    """
    if embeddings.shape != (len(rows), identity.embedding_dim):
        raise ValueError(f"{len(rows)} rows, embeddings {embeddings.shape}, {identity}")
    path = directory / name
    # Overwriting would lose rows that others already count as finished.
    if path.exists():
        raise CheckpointError(f"{path}: exists already, and parts are never overwritten")
    # In memory first: so the digest is of the bytes that were meant, whatever the disk does.
    image = _make_image(rows, embeddings, identity, ids)
    digest = hashlib.sha256(image).hexdigest()
    # The size finds a part that was cut off without reading all of it.
    done = {"num_rows": len(rows), "num_bytes": len(image), "sha256": digest}
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory}: cannot be made ({error.strerror})") from error
    with replace_when_whole(path) as temporary:
        temporary.write_bytes(image)
    # The mark comes last: a crash before it leaves a part that does not count.
    try:
        _write_mark(path, done)
    except OutputError:
        # Without a mark the part would never count, but it would take room on a disk that is full.
        path.unlink(missing_ok=True)
        raise
    return path


def mark_done(path: Path, num_rows: int) -> None:
    """Mark a file as done that is whole already, with its digest.

    Raises:
        OutputError: The mark cannot be written.
        CheckpointError: The file cannot be read.
    """
    with hdf5.explaining(path):
        done = {"num_rows": num_rows, "num_bytes": path.stat().st_size, "sha256": read_sha256(path)}
    _write_mark(path, done)


def unmark(path: Path) -> None:
    """Remove the mark of a file that is about to change, if there is one."""
    done_path(path).unlink(missing_ok=True)


def _write_mark(path: Path, done: dict[str, Any]) -> None:
    # Whole, because half a mark would make a good part look damaged.
    with replace_when_whole(done_path(path)) as temporary:
        temporary.write_text(json.dumps(done), encoding="utf-8")


def _make_image(
    rows: Int64Array, embeddings: Float32Array, identity: Identity, ids: Sequence[str] | None
) -> bytes:
    # HDF5 2.0 crashes the process when it closes a file on a full disk. So it writes to memory,
    # where it cannot run out of disk, and Python writes the bytes.
    with h5py.File("part", "w", driver="core", backing_store=False) as file:
        file.attrs.update(
            format=FORMAT_NAME, format_version=FORMAT_VERSION, **identity.attributes()
        )
        file.create_dataset("rows", data=rows, dtype="<i8")
        file.create_dataset("embeddings", data=embeddings, dtype="<f4")
        if ids is not None:
            file.create_dataset("ids", (len(rows),), h5py.string_dtype(), hdf5.encode_strings(ids))
        # The image holds only what HDF5 has flushed.
        file.flush()
        return bytes(file.id.get_file_image())


def done_path(path: Path) -> Path:
    """Return the path of the mark of a part."""
    return path.with_name(f"{path.name}.done")


class Part(NamedTuple):
    """A part's identity, and where its data lie in the file.

    No file stays open: each method opens the file for itself, and raises CheckpointError if the
    file is damaged.
    """

    path: Path
    identity: Identity
    num_rows: int
    rows_offset: int
    embeddings_offset: int

    def read_rows(self) -> Int64Array:
        """Return the rows, int64 (N,)."""
        with hdf5.explaining(self.path):
            return np.fromfile(self.path, "<i8", self.num_rows, offset=self.rows_offset)

    def map_embeddings(self) -> Float32Array:
        """Return the embeddings, float32 (N, E), as a memory map; N must not be 0."""
        shape = (self.num_rows, self.identity.embedding_dim)
        with hdf5.explaining(self.path):
            # Mapped: the memory need not hold all of a part at once.
            return np.memmap(self.path, "<f4", "r", offset=self.embeddings_offset, shape=shape)

    def read_embeddings(self, lines: Int64Array, into: Sequence[Float32Array]) -> None:
        """Read the embeddings at `lines` into the arrays (E,) of `into`, one for each line.

        For some lines of a part this is faster than a map, which costs as much as ten reads.
        """
        with hdf5.explaining(self.path), self.path.open("rb", buffering=0) as file:
            descriptor, begin = file.fileno(), self.embeddings_offset
            for line, embedding_E in zip(lines.tolist(), into, strict=True):
                num_bytes = embedding_E.nbytes
                if os.preadv(descriptor, [embedding_E.data], begin + line * num_bytes) != num_bytes:
                    raise CheckpointError(f"{self.path}: ends before the embedding at line {line}")

    def read_ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of the embeddings `start` to `stop - 1`."""
        with hdf5.open_file(self.path) as file:
            ids = hdf5.open_strings(file, "ids")
            if len(ids) != self.num_rows:
                raise CheckpointError(f"{self.path}: {len(ids)} ids and {self.num_rows} rows")
            return hdf5.read_strings(ids, start, stop)


def read_part(path: Path) -> Part:
    """Return the part at `path` after checking its structure, but not its digest.

    Raises:
        CheckpointError: The part is damaged.
        FormatVersionError: The part has another version of the format.
    """
    with hdf5.open_file(path) as file:
        if hdf5.read_attribute(file, "format") != FORMAT_NAME:
            raise CheckpointError(f"{path}: not a file of the format {FORMAT_NAME}")
        _check_version(path, int(hdf5.read_attribute(file, "format_version") or 0))
        identity = _read_identity(path, file)
        rows = hdf5.open_dataset(file, "rows", np.dtype("<i8"), ndim=1)
        embeddings = hdf5.open_dataset(file, "embeddings", np.dtype("<f4"), ndim=2)
        wanted = (len(rows), identity.embedding_dim)
        if embeddings.shape != wanted:
            raise CheckpointError(f"{path}: embeddings are {embeddings.shape}, wanted {wanted}")
        # Chunks may lie anywhere in the file, so there would be no single offset to map from.
        if rows.chunks or embeddings.chunks:
            raise CheckpointError(
                f"{path}: its data are not contiguous and cannot be memory-mapped"
            )
        # HDF5 gives an empty dataset no offset.
        offsets = [dataset.id.get_offset() or 0 for dataset in (rows, embeddings)]
        return Part(path, identity, len(rows), *offsets)


def _check_version(path: Path, version: int) -> None:
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: format version {version}, written by a newer virnucpro: this one reads "
            f"version {FORMAT_VERSION}; update virnucpro"
        )
    if version < FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: format version {version} is older than version {FORMAT_VERSION}, which this "
            "virnucpro reads; convert it with `virnucpro migrate`"
        )


def _read_identity(path: Path, file: h5py.File) -> Identity:
    values: dict[str, Any] = {}
    for field in fields(Identity):
        value = hdf5.read_attribute(file, field.name)
        if value is None and field.default is not MISSING:
            value = field.default
        values[field.name] = value
        # A strange file may hold a number where a text is wanted, and it would never equal our
        # identity.
        # Annotations are text here.
        if type(value).__name__ != field.type:
            raise CheckpointError(
                f"{path}: attribute {field.name} should be {field.type}, found {brief(value)}"
            )
    try:
        # The same rule may be written in several ways.
        values["frame_rule"] = str(FrameRule.parse(values["frame_rule"]))
    except UsageError as error:
        raise CheckpointError(f"{path}: attribute frame_rule: {error}") from error
    return Identity(**values)


def read_identity(path: Path) -> Identity:
    """Return the identity of the part at `path`.

    Raises:
        CheckpointError: As `read_part`.
    """
    return read_part(path).identity


def check_part(path: Path, *, full: bool = True) -> None:
    """Check that a part is marked done and has not changed since.

    With `full`, read the entire part: compare its digest, and look for NaN and infinity.

    Raises:
        UnfinishedError: The part has no mark.
        CheckpointError: The part is damaged.
        FormatVersionError: The part has another version of the format.
    """
    done = _read_done(path)
    with hdf5.explaining(path):
        num_bytes = path.stat().st_size
        # The size comes first, because it costs nothing. The digest reads the whole part.
        if num_bytes != done["num_bytes"]:
            raise CheckpointError(
                f"{path}: has {count(num_bytes, 'byte')} instead of {done['num_bytes']}"
            )
        if full and read_sha256(path) != done["sha256"]:
            raise CheckpointError(f"{path}: has changed since it was written (SHA-256)")
    part = read_part(path)
    if part.num_rows != done["num_rows"]:
        raise CheckpointError(
            f"{path}: has {count(part.num_rows, 'row')} instead of {done['num_rows']}"
        )
    if full and part.num_rows:
        embeddings_NE = part.map_embeddings()
        # Minimum and maximum need no second array of this size, and NaN propagates through both.
        if not np.isfinite([embeddings_NE.min(), embeddings_NE.max()]).all():
            raise CheckpointError(f"{path}: holds embeddings that are NaN or infinite")


def _read_done(path: Path) -> dict[str, Any]:
    try:
        done = json.loads(done_path(path).read_text(encoding="utf-8"))
        return {name: done[name] for name in ("num_rows", "num_bytes", "sha256")}
    except FileNotFoundError as error:
        raise UnfinishedError(f"{path}: was not finished (there is no .done file)") from error
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its .done file cannot be read ({error!r})") from error


def is_finished(path: Path) -> bool:
    """Tell whether there is a part at `path` that is marked done."""
    return path.exists() and done_path(path).exists()


def finished_parts(directory: Path) -> list[Path]:
    """Return the parts in `directory` that are marked done, sorted; opens none of them."""
    # Sorted, because directories list files in any order, and all processes must see the same.
    return sorted(path for path in directory.glob("part-*.h5") if done_path(path).exists())


def link_parts(sources: Sequence[Path], directory: Path) -> None:
    """Give `directory` the finished parts of other directories, under names of their own.

    Raises:
        OutputError: A part cannot be linked or copied.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Each source gets a rank of its own, so that no two parts get the same name.
    for rank, source in enumerate(sources):
        for number, path in enumerate(finished_parts(source)):
            linked = directory / part_name(rank, number)
            # The mark comes last: without it, a part does not count.
            link_or_copy(path, linked)
            link_or_copy(done_path(path), done_path(linked))


def finished_rows(parts: Sequence[Path]) -> Int64Array:
    """Return the rows in `parts`: int64, sorted, each row once.

    Raises:
        CheckpointError: A part cannot be read.
    """
    return np.unique(concatenate_rows([read_part(path) for path in parts]))


def concatenate_rows(parts: Sequence[Part]) -> Int64Array:
    """Return the rows of all `parts` in the order of the parts: int64.

    Raises:
        CheckpointError: A part cannot be read.
    """
    return np.concatenate([np.empty(0, np.int64), *(part.read_rows() for part in parts)])

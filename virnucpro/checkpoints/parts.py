"""Parts: the HDF5 files that hold finished embeddings, as FORMAT.md describes them.

A part is written whole, checked by its digest, and never touched again; what is in valid parts is
finished, everything else is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from virnucpro.checkpoints import hdf5
from virnucpro.checkpoints.migrations import FORMAT_VERSION, FormatVersionError, check_version
from virnucpro.checkpoints.whole_files import replace_when_whole
from virnucpro.errors import CheckpointError, IdentityMismatchError, OutputError

FORMAT_NAME = "virnucpro-embeddings"

FloatArray = np.ndarray[Any, np.dtype[np.float32]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides the values in a part.

    Attributes:
        input_digest: Digest of the sequences that `rows` count.
        backend: The backend's name.
        backend_version: The version of the package that it came from.
        weights_identity: Digest of the weights.
        precision: What was computed in: `fp32`, `bf16`, `fp16` or `fp8`.
        chunk_length_bp: Length of the chunks, 0 when records were embedded whole.
        pooling: How token vectors became one vector.
        embedding_dim: Numbers in an embedding.
    """

    input_digest: str
    backend: str
    backend_version: str
    weights_identity: str
    precision: str
    chunk_length_bp: int
    pooling: str
    embedding_dim: int

    def differences(self, other: Identity) -> list[str]:
        """Return a sentence for every field in which this run differs from a part's `other`."""
        there = asdict(other)
        return [
            f"{name.replace('_', ' ')} is {here} now and was {there[name]} there"
            for name, here in asdict(self).items()
            if here != there[name]
        ]


def part_name(rank: int, number: int) -> str:
    """Return the file name of a rank's part; `number` counts from 0."""
    return f"part-{rank:05d}-{number:06d}.h5"


def next_part_number(directory: Path, rank: int) -> int:
    """Return the first number that `rank` has not used yet, for damaged parts neither."""
    pattern = re.compile(rf"part-{rank:05d}-(\d{{6}})\.h5")
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return max((int(match[1]) + 1 for match in map(pattern.match, names) if match), default=0)


def write_part(
    directory: Path,
    name: str,
    rows: IntArray,
    embeddings: FloatArray,
    identity: Identity,
    ids: Sequence[str] | None = None,
) -> Path:
    """Write a part and mark it done; when this returns, it survives a crash of the machine.

    Args:
        directory: Made if need be.
        name: The file's name, from `part_name`.
        rows: int64 (N,), the row of each embedding, none twice.
        embeddings: float32 (N, E).
        identity: What made them.
        ids: The N names of the sequences, for files that must stand alone.

    Raises:
        CheckpointError: The part exists already.
        OutputError: It cannot be written; no half-written part is left.
    """
    if embeddings.shape != (len(rows), identity.embedding_dim):
        raise ValueError(f"{len(rows)} rows, embeddings {embeddings.shape}, {identity}")
    path = directory / name
    if path.exists():
        raise CheckpointError(f"{path}: exists already, and parts are never overwritten")
    image = _make_image(rows, embeddings, identity, ids)
    digest = hashlib.sha256(image).hexdigest()
    done = {"num_rows": len(rows), "num_bytes": len(image), "sha256": digest}
    with replace_when_whole(path) as temporary:
        directory.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(image)
    # The mark comes last: a crash before it leaves a part that does not count.
    try:
        with replace_when_whole(_done_path(path)) as temporary:
            temporary.write_text(json.dumps(done), encoding="utf-8")
    except OutputError:
        path.unlink(missing_ok=True)
        raise
    return path


def _make_image(
    rows: IntArray, embeddings: FloatArray, identity: Identity, ids: Sequence[str] | None
) -> bytes:
    # In memory, because HDF5 2.0 crashes the process when it closes a file on a full disk.
    with h5py.File("part", "w", driver="core", backing_store=False) as file:
        file.attrs.update(format=FORMAT_NAME, format_version=FORMAT_VERSION, **asdict(identity))
        file.create_dataset("rows", data=rows, dtype="<i8")
        file.create_dataset("embeddings", data=embeddings, dtype="<f4")
        if ids is not None:
            file.create_dataset("ids", (len(rows),), h5py.string_dtype(), hdf5.encode_strings(ids))
        file.flush()
        return bytes(file.id.get_file_image())


def _done_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.done")


class Part(NamedTuple):
    """Where in the file the data of a part lie, which is all that reading them needs."""

    path: Path
    identity: Identity
    num_rows: int
    rows_offset: int
    embeddings_offset: int

    def read_rows(self) -> IntArray:
        """Return the rows: int64 (N,)."""
        with hdf5.explaining(self.path):
            return np.fromfile(self.path, "<i8", self.num_rows, offset=self.rows_offset)

    def map_embeddings(self) -> FloatArray:
        """Return the embeddings, float32 (N, E), without reading them; N must not be 0."""
        shape = (self.num_rows, self.identity.embedding_dim)
        with hdf5.explaining(self.path):
            return np.memmap(self.path, "<f4", "r", offset=self.embeddings_offset, shape=shape)

    def read_ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of the embeddings from `start` up to, but without, `stop`."""
        with hdf5.open_file(self.path) as file:
            ids = hdf5.open_strings(file, "ids")
            if len(ids) != self.num_rows:
                raise CheckpointError(f"{self.path}: {len(ids)} ids and {self.num_rows} rows")
            return hdf5.read_strings(ids, start, stop)


def read_part(path: Path) -> Part:
    """Return where the data of the part `path` lie, once it is seen to be one.

    Raises:
        CheckpointError: It is damaged, or of another version of the format.
    """
    with hdf5.open_file(path) as file:
        if hdf5.read_attribute(file, "format") != FORMAT_NAME:
            raise CheckpointError(f"{path}: not a file of the format {FORMAT_NAME}")
        check_version(path, int(hdf5.read_attribute(file, "format_version") or 0))
        identity = _read_identity(path, file)
        rows = hdf5.open_dataset(file, "rows", np.dtype("<i8"), ndim=1)
        embeddings = hdf5.open_dataset(file, "embeddings", np.dtype("<f4"), ndim=2)
        wanted = (len(rows), identity.embedding_dim)
        if embeddings.shape != wanted:
            raise CheckpointError(f"{path}: embeddings are {embeddings.shape}, wanted {wanted}")
        if rows.chunks or embeddings.chunks:
            raise CheckpointError(f"{path}: not stored contiguously, to be mapped into memory")
        # An empty dataset has no place in the file.
        offsets = [dataset.id.get_offset() or 0 for dataset in (rows, embeddings)]
        return Part(path, identity, len(rows), *offsets)


def _read_identity(path: Path, file: h5py.File) -> Identity:
    values: dict[str, Any] = {}
    for field in fields(Identity):
        value = values[field.name] = hdf5.read_attribute(file, field.name)
        if type(value).__name__ != field.type:  # annotations are text here
            raise CheckpointError(
                f"{path}: attribute {field.name} should be {field.type}, found {value!r}"
            )
    return Identity(**values)


def read_identity(path: Path) -> Identity:
    """Return what made the embeddings in the part `path`.

    Raises:
        CheckpointError: It is damaged, or of another version of the format.
    """
    return read_part(path).identity


def check_part(path: Path, *, full: bool = True) -> None:
    """Let a part pass only if it is marked done and holds what it held then.

    With `full`, all of it is read for its digest and for values that are not finite.

    Raises:
        CheckpointError: It is damaged; `FormatVersionError`, if it is of another version.
    """
    done = _read_done(path)
    with hdf5.explaining(path), path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes != done["num_bytes"]:
            raise CheckpointError(f"{path}: has {num_bytes} bytes instead of {done['num_bytes']}")
        if full and hashlib.file_digest(file, "sha256").hexdigest() != done["sha256"]:
            raise CheckpointError(f"{path}: has changed since it was written (SHA-256)")
    part = read_part(path)
    if part.num_rows != done["num_rows"]:
        raise CheckpointError(f"{path}: has {part.num_rows} rows instead of {done['num_rows']}")
    if full and part.num_rows:
        embeddings_NE = part.map_embeddings()
        # The extremes tell without a second array of that size; NaN comes through both.
        if not np.isfinite([embeddings_NE.min(), embeddings_NE.max()]).all():
            raise CheckpointError(f"{path}: holds embeddings that are NaN or infinite")


def _read_done(path: Path) -> dict[str, Any]:
    try:
        done = json.loads(_done_path(path).read_text(encoding="utf-8"))
        return {name: done[name] for name in ("num_rows", "num_bytes", "sha256")}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: was not finished (there is no .done file)") from error
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its .done file cannot be read ({error!r})") from error


def finished_parts(directory: Path) -> list[Path]:
    """Return the parts in `directory` that are marked done, sorted, without looking into them."""
    return sorted(path for path in directory.glob("part-*.h5") if _done_path(path).exists())


def collect_parts(directory: Path, identity: Identity, *, full: bool = True) -> list[Path]:
    """Check all parts in `directory`, set damaged ones aside, and return the others, sorted.

    One process calls it, before anybody writes there; the others use `finished_parts` afterwards.
    `identity` is what this run would write, and `full` means what it means to `check_part`.

    Raises:
        IdentityMismatchError: A part comes from another run; nothing was changed.
        CheckpointError: A part is of another version of the format; nothing was changed.
    """

    def find_damage(path: Path) -> str | None:
        try:
            check_part(path, full=full)
            differences = identity.differences(read_identity(path))
        except FormatVersionError:
            raise
        except CheckpointError as error:
            return str(error)
        if differences:
            raise IdentityMismatchError(
                f"{path} belongs to another run: {'; '.join(differences)}. Give another output "
                "directory (-o), start afresh with --force, or go back to the old input and "
                "settings"
            )
        return None

    paths = sorted(directory.glob("part-*.h5"))
    with ThreadPoolExecutor() as pool:
        damages = dict(zip(paths, pool.map(find_damage, paths), strict=True))
    for leftover in directory.glob(".part-*.tmp"):
        leftover.unlink()
    for path, damage in damages.items():
        if damage is not None:
            _set_aside(path, damage)
    return [path for path, damage in damages.items() if damage is None]


def _set_aside(path: Path, damage: str) -> None:
    damaged_path = path.with_name(f"{path.name}.damaged")
    logger.warning("%s; set aside as %s and computed again", damage, damaged_path.name)
    # In this order, so that nothing ever counts that is half set aside.
    _done_path(path).unlink(missing_ok=True)
    path.rename(damaged_path)


def finished_rows(parts: Sequence[Path]) -> IntArray:
    """Return the rows that are in any of `parts`: int64, sorted, each once.

    Raises:
        CheckpointError: A part cannot be read.
    """
    return np.unique(concatenate_rows([read_part(path) for path in parts]))


def concatenate_rows(parts: Sequence[Part]) -> IntArray:
    """Return the rows of all `parts` as they come: int64.

    Raises:
        CheckpointError: A part cannot be read.
    """
    return np.concatenate([np.empty(0, np.int64), *(part.read_rows() for part in parts)])

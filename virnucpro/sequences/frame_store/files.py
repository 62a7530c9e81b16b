"""The files of a store: the manifest, the tables of numbers and the texts."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.digests import read_sha256
from virnucpro.config.frame_rule import OPEN_RULE, FrameRule
from virnucpro.errors import CheckpointError, UsageError, first_line

FORMAT_VERSION = 2
"""2: the manifest has a digest of itself and of each file."""

MANIFEST = "manifest.json"
FRAME_FORMAT = "virnucpro-frame-store"
RECORD_FORMAT = "virnucpro-record-store"
FRAME_RULE = "frame_rule"
"""The entry of the manifest that says the frame rule; the original's rule is not named."""

READS_PER_RECORD = "reads_per_record"
"""The entry of the manifest that says that a record is a pair of reads; other stores lack it."""

CHANGED = "num_changed"
"""The entry of an input that counts the records whose letters were changed by reading."""

FIRST_CODONS = "first_codons.int32"
"""Where rows are stretches, the place of each stretch's first codon in its frame."""

# For an error. Also commands that have no --resume read the stores of earlier runs.
WRITE_AGAIN = "repeat, with --resume and the same input, the command that wrote the store"

_PREAD_BYTES = 1 << 30
# Spans are read together if they are at least half of the bytes from the first to the last.
_MAX_SPREAD = 2
# Larger lengths in a damaged manifest would overflow the arithmetic on chunks.
_MAX_LENGTH_BP = 1 << 40


class TextFile:
    """A file of bytes for reading at given places; several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Stores have no `close`: the last user of a store, perhaps a worker, closes its files.
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop - 1`."""
        if stop - start <= _PREAD_BYTES:
            # pread takes the place as an argument. So processes that share the descriptor cannot
            # disturb each other.
            return os.pread(self._descriptor, stop - start, start)
        # One call reads at most 2 GiB, and the headers of many records may be longer together.
        middle = start + _PREAD_BYTES
        return os.pread(self._descriptor, _PREAD_BYTES, start) + self.read(middle, stop)

    def read_many(self, start: Int64Array, length: Int64Array) -> list[bytes]:
        """Return the bytes at each start, as many as each length says."""
        begins, ends = start.tolist(), (start + length).tolist()
        spans = zip(begins, ends, strict=True)
        first, stop = min(begins, default=0), max(ends, default=0)
        # Most spans are neighbours, and reading them together is much faster.
        if stop - first > min(_MAX_SPREAD * int(length.sum()), _PREAD_BYTES):
            return [self.read(begin, end) for begin, end in spans]
        data = self.read(first, stop)
        return [data[begin - first : end - first] for begin, end in spans]


def open_table(directory: Path, name: str) -> npt.NDArray[Any]:
    """Return a memory-mapped table of numbers; the ending of its name is its type."""
    path = directory / name
    dtype = np.dtype(path.suffix[1:])
    # An empty file cannot be mapped.
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    # A plain array over the map: slices of a memmap would be memmaps, which are slow to make.
    return np.asarray(np.memmap(path, dtype, mode="r"))


def read_manifest(directory: Path, wanted_format: str) -> dict[str, Any]:
    """Return the manifest of a complete store.

    Raises:
        CheckpointError: The store is missing, incomplete, damaged or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["format_version"])
        # Other versions may have other entries, so only our own is looked into.
        if found == (wanted_format, FORMAT_VERSION):
            _check_values(manifest)
            sizes = {name: (directory / name).stat().st_size for name in manifest["files"]}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory}: holds no complete frame store ({error.filename} is missing; was "
            "building it interrupted?); build it again from the input"
        ) from error
    except (OSError, RecursionError, ValueError, LookupError, TypeError, UsageError) as error:
        raise CheckpointError(
            f"{path}: is not the manifest of a frame store ({error!r})"
        ) from error
    if found != (wanted_format, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: found {found[0]} version {found[1]}, wanted {wanted_format} version "
            f"{FORMAT_VERSION}; {WRITE_AGAIN}"
        )
    # Sizes are cheap to compare, and show a copy that was cut off.
    damaged = [name for name, size in sizes.items() if size != manifest["files"][name]["num_bytes"]]
    if damaged:
        raise CheckpointError(
            f"{directory}: {', '.join(damaged)} changed size since they were written; {WRITE_AGAIN}"
        )
    return dict(manifest)


def digest_manifest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's values, which it holds as `sha256` itself."""
    # Sorted, because the digest must not depend on the order in which the entries were made.
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Compare the content of each file of a store with its digest.

    Raises:
        CheckpointError: A file has changed since it was written.
    """

    def is_whole(name: str) -> bool:
        return bool(read_sha256(directory / name) == manifest["files"][name]["sha256"])

    try:
        # Digesting releases Python's global lock.
        with ThreadPoolExecutor() as pool:
            names = sorted(manifest["files"])
            whole = list(pool.map(is_whole, names))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read ({first_line(error)})") from error
    damaged = [name for name, is_good in zip(names, whole, strict=True) if not is_good]
    if damaged:
        raise CheckpointError(
            f"{directory}: {', '.join(damaged)} changed since they were written (SHA-256); "
            f"{WRITE_AGAIN}"
        )


def read_rule(manifest: dict[str, Any]) -> FrameRule:
    """Return the frame rule that a manifest says."""
    return FrameRule.parse(manifest.get(FRAME_RULE, str(OPEN_RULE)))


def _check_values(manifest: dict[str, Any]) -> None:
    """Raise an error if a manifest lacks a value, or has a bad one."""
    # First of all: no other value is worth a look if the manifest has changed.
    if manifest.pop("sha256") != digest_manifest(manifest):
        raise ValueError("its digest does not fit")
    read_rule(manifest)
    for file in manifest["inputs"]:
        # Only to see whether it is hexadecimal: the digest ends up in the identity of parts.
        bytes.fromhex(file["sha256"])
    wanted = {"chunk_length_bp", "min_length_bp"} if manifest["format"] == FRAME_FORMAT else ()
    lengths = [manifest[name] for name in wanted]
    if not manifest["inputs"] or not all(
        type(length) is int and 0 <= length < _MAX_LENGTH_BP for length in lengths
    ):
        raise ValueError(f"{len(manifest['inputs'])} inputs, lengths {lengths}")

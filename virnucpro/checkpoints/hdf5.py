"""Looking into HDF5 files of any origin without believing what they say of themselves.

A dataset is taken only where its bytes lie, unfiltered, in this very file, and are all there. So
nothing leads out of the file, and nothing becomes larger in memory than the file is on disk. What
is wrong is raised as a ValueError, which `explaining` turns into an error that names the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virnucpro.errors import CheckpointError

_MAX_ATTRIBUTE_BYTES = 4096
# On disk: length, address in the file, number there (HDF5 file format, "Variable-length").
_STRING_ENTRY = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn what h5py and the system raise over a bad file into one error that names it.

    Raises:
        CheckpointError: Anything was wrong with the file.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({reason})") from error


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, explaining what goes wrong meanwhile.

    Raises:
        CheckpointError: Anything was wrong with the file.
    """
    with explaining(path), h5py.File(path, "r", locking="best-effort") as file:
        yield file


def open_dataset(file: h5py.File, name: str, dtype: np.dtype[Any], ndim: int) -> h5py.Dataset:
    """Return a dataset of numbers, contiguous or in unfiltered chunks, all of it in `file`.

    Raises:
        ValueError: It is missing, a link, of another type, filtered, or not wholly in the file.
    """
    dataset = _open_stored(file, name, ndim)
    if dataset.dtype != dtype:
        raise ValueError(f"{name} should be {dtype}, found {dataset.dtype}")
    _check_size(file, dataset, math.prod(dataset.shape) * dtype.itemsize)
    return dataset


def open_strings(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of N strings of variable length, all of them in `file`.

    Raises:
        ValueError: As `open_dataset`; or the strings claim to be longer than the file, as when
            many share one place in it.
    """
    dataset = _open_stored(file, name, ndim=1)
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind is None or kind.length is not None:
        raise ValueError(f"{name} should be strings of variable length, found {dataset.dtype}")
    _check_size(file, dataset, len(dataset) * _STRING_ENTRY.itemsize)
    num_bytes = sum(int(entries["length"].sum(dtype=np.int64)) for entries in _entries(dataset))
    if num_bytes > _file_size(file):
        raise ValueError(f"{name} claims {num_bytes:,} bytes of text, more than the file holds")
    return dataset


def read_strings(dataset: h5py.Dataset, start: int, stop: int) -> list[str]:
    """Return the strings from `start` up to, but without, `stop`."""
    return [name.decode("utf-8", "surrogateescape") for name in dataset[start:stop]]


def encode_strings(strings: Iterable[str]) -> list[bytes]:
    """Return strings as they are stored: what was not UTF-8 in the input stays as it was."""
    return [text.encode("utf-8", "surrogateescape") for text in strings]


def read_attribute(file: h5py.File, name: str) -> str | int | None:
    """Return an attribute of the root group: one text or integer; None if it is not there.

    Raises:
        ValueError: It is of another type, or longer than any of ours.
    """
    if not h5py.h5a.exists(file.id, name.encode()):
        return None
    attribute = h5py.h5a.open(file.id, name.encode())
    dtype = attribute.dtype
    is_text = h5py.check_string_dtype(dtype) is not None
    if attribute.shape != () or not (is_text or dtype.kind in "iu"):
        raise ValueError(f"attribute {name} should be a text or an integer, found {dtype}")
    if attribute.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} has {attribute.get_storage_size():,} bytes; refused")
    value = file.attrs[name]
    if not is_text:
        return int(value)
    text = value if isinstance(value, str) else bytes(value).decode("utf-8")
    if len(text) > _MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} is a text of {len(text):,} letters; refused")
    return text


def _open_stored(file: h5py.File, name: str, ndim: int) -> h5py.Dataset:
    if type(file.get(name, getlink=True)) is not h5py.HardLink:
        raise ValueError(f"{name} is missing or a link, which is refused")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or len(dataset.shape or ()) != ndim:
        raise ValueError(f"{name} should be a dataset of {ndim} dimensions, found {dataset}")
    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or properties.get_external_count():
        raise ValueError(f"{name} lies in other files, or in the header; refused")
    if properties.get_nfilters():
        raise ValueError(f"{name} is compressed or filtered, which is refused")
    return dataset


def _check_size(file: h5py.File, dataset: h5py.Dataset, num_bytes: int) -> None:
    """Raise ValueError unless so many bytes are stored; HDF5 makes up what is not."""
    stored = dataset.id.get_storage_size()
    pieces = _pieces(dataset)
    ends = [offset + size for offset, size in pieces]
    if num_bytes > min(stored, _file_size(file)) or max(ends, default=0) > _file_size(file):
        raise ValueError(f"{dataset.name} reaches beyond the end of the file, or is not written")


def _pieces(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    """Return where in the file the bytes of a dataset lie: offset and length of each piece."""
    if dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return [] if offset is None else [(offset, dataset.id.get_storage_size())]
    pieces: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda chunk: pieces.append((chunk.byte_offset, chunk.size)))
    return pieces


def _entries(dataset: h5py.Dataset) -> list[np.ndarray[Any, Any]]:
    """Return the entries of a dataset of strings as they lie in the file, piece by piece."""
    path = Path(dataset.file.filename)
    size = _STRING_ENTRY.itemsize
    return [
        np.fromfile(path, _STRING_ENTRY, num_bytes // size, offset=offset)
        for offset, num_bytes in _pieces(dataset)
    ]


def _file_size(file: h5py.File) -> int:
    return Path(file.filename).stat().st_size

"""Looking into HDF5 files of any origin without believing what they say of themselves.

A dataset is taken only where its bytes lie, unfiltered, in this very file, and are all there. So
nothing leads out of the file, and nothing becomes larger in memory than the file is on disk. What
is wrong is raised as a ValueError, which `explaining` turns into an error that names the file.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virnucpro.errors import CheckpointError, first_line

_MAX_ATTRIBUTE_BYTES = 4096
# On disk: length, address in the file, number there (HDF5 file format, "Variable-length").
_STRING_ENTRY = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])
_HEAP_MARK = b"GCOL\x01"
_HEAP_HEADER_BYTES = 16
_MAX_CHECKS = 64


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn what h5py and the system raise over a bad file into one error that names it.

    Raises:
        CheckpointError: Anything was wrong with the file.
    """
    try:
        yield
    except (OSError, OverflowError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from error


@contextmanager
def open_file(path: Path) -> Iterator[File]:
    """Open an HDF5 file for reading, explaining what goes wrong meanwhile.

    Raises:
        CheckpointError: Anything was wrong with the file.
    """
    with explaining(path), _Reader(path, "r") as reader, File(reader) as file:
        yield file


class File(h5py.File):  # type: ignore[misc]  # h5py has no types
    """An HDF5 file whose bytes are looked at before the library sees them."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        super().__init__(reader, "r")


class _Reader(io.FileIO):
    """Hands out bytes, but none of a global heap in which the library would loop for ever.

    Libraries up to at least 2.0 step from object to object of a heap by the size that the object
    of free space claims, which may be 0 (HDF5 file format, "Global Heap").
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.num_bytes = os.fstat(self.fileno()).st_size
        self._num_checked = 0

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        num_read = super().readinto(buffer) or 0
        margin = len(_HEAP_MARK) - 1  # it may lie across two reads
        before = os.pread(self.fileno(), min(margin, start), max(0, start - margin))
        after = os.pread(self.fileno(), margin, start + num_read)
        content = b"".join([before, memoryview(buffer)[:num_read], after])
        place = content.find(_HEAP_MARK)
        while place >= 0:
            self._check_heap(start - len(before) + place)
            place = content.find(_HEAP_MARK, place + 1)
        return num_read

    def _check_heap(self, address: int) -> None:
        (size,) = struct.unpack("<8xQ", os.pread(self.fileno(), 16, address).ljust(16, b"\0"))
        if address + size > self.num_bytes:
            return  # the library refuses it
        self._num_checked += size
        if self._num_checked > _MAX_CHECKS * self.num_bytes:
            raise OSError("has heaps within heaps")
        heap = os.pread(self.fileno(), size, address)
        place = _HEAP_HEADER_BYTES
        while place + _HEAP_HEADER_BYTES <= len(heap):
            number, num_bytes = struct.unpack_from("<H6xQ", heap, place)
            if number == 0 and num_bytes < _HEAP_HEADER_BYTES:
                raise OSError("has a broken global heap")
            place += num_bytes if number == 0 else _HEAP_HEADER_BYTES + -(-num_bytes // 8) * 8


def open_dataset(file: File, name: str, dtype: np.dtype[Any], ndim: int) -> h5py.Dataset:
    """Return a dataset of numbers, contiguous or in unfiltered chunks, all of it in `file`.

    Raises:
        ValueError: It is missing, a link, of another type, filtered, or not wholly in the file.
    """
    dataset = _open_stored(file, name, ndim)
    if dataset.dtype != dtype:
        raise ValueError(f"{name} should be {dtype}, found {dataset.dtype}")
    _check_size(file, dataset, math.prod(dataset.shape) * dtype.itemsize)
    return dataset


def open_strings(file: File, name: str) -> h5py.Dataset:
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
    num_bytes = sum(
        int(entries["length"].sum(dtype=np.int64)) for entries in _entries(file, dataset)
    )
    if num_bytes > file.reader.num_bytes:
        raise ValueError(f"{name} claims {num_bytes:,} bytes of text, more than the file holds")
    return dataset


def read_strings(dataset: h5py.Dataset, start: int, stop: int) -> list[str]:
    """Return the strings from `start` up to, but without, `stop`."""
    return [name.decode("utf-8", "surrogateescape") for name in dataset[start:stop]]


def encode_strings(strings: Iterable[str]) -> list[bytes]:
    """Return strings as they are stored: what was not UTF-8 in the input stays as it was."""
    return [text.encode("utf-8", "surrogateescape") for text in strings]


def read_attribute(file: File, name: str) -> str | int | None:
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


def _open_stored(file: File, name: str, ndim: int) -> h5py.Dataset:
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


def _check_size(file: File, dataset: h5py.Dataset, num_bytes: int) -> None:
    """Raise ValueError unless so many bytes are stored; HDF5 makes up what is not."""
    stored = dataset.id.get_storage_size()
    pieces = _pieces(dataset)
    ends = [offset + size for offset, size in pieces]
    if (
        num_bytes > min(stored, file.reader.num_bytes)
        or max(ends, default=0) > file.reader.num_bytes
    ):
        raise ValueError(f"{dataset.name} reaches beyond the end of the file, or is not written")


def _pieces(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    """Return where in the file the bytes of a dataset lie: offset and length of each piece."""
    if dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return [] if offset is None else [(offset, dataset.id.get_storage_size())]
    pieces: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda chunk: pieces.append((chunk.byte_offset, chunk.size)))
    return pieces


def _entries(file: File, dataset: h5py.Dataset) -> list[np.ndarray[Any, Any]]:
    """Return the entries of a dataset of strings as they lie in the file, piece by piece."""
    size = _STRING_ENTRY.itemsize
    return [
        np.frombuffer(
            os.pread(file.reader.fileno(), num_bytes // size * size, offset), _STRING_ENTRY
        )
        for offset, num_bytes in _pieces(dataset)
    ]

"""Reading HDF5 files of any origin without trusting them.

A dataset is read only if all its bytes lie in this file, without a filter. So no link leads out of
the file, and no dataset needs more memory than the file needs on disk. The functions raise
ValueError, and `explaining` turns it into an error that names the file.
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

# Our attributes are names and digests, which have some dozens of bytes.
_MAX_ATTRIBUTE_BYTES = 4096
# How HDF5 stores a string: its length, the address of a global heap, and its number in this heap
# (HDF5 file format, "Variable-length").
_STRING_ENTRY = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])
_HEAP_MARK = b"GCOL\x01"
_HEAP_HEADER_BYTES = 16
# All checks together read at most this many times the size of the file.
_MAX_CHECKS = 64


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn the errors of h5py and the system about a bad file into one that names the file.

    Raises:
        CheckpointError: The file is damaged or refused.
    """
    try:
        yield
    except (OSError, OverflowError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from error


@contextmanager
def open_file(path: Path) -> Iterator[File]:
    """Open an HDF5 file for reading, and explain the errors that the block raises.

    Raises:
        CheckpointError: The file is damaged or refused.
    """
    # h5py reads through Python's file object, so every byte passes `_Reader.readinto`.
    with explaining(path), _Reader(path, "r") as reader, File(reader) as file:
        yield file


class File(h5py.File):  # type: ignore[misc]  # h5py has no types
    """An HDF5 file whose bytes are checked before the HDF5 library sees them."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        try:
            super().__init__(reader, "r")
        except Exception as error:
            # Without the frames of h5py. They hold objects that the library would free after Python
            # has ended, and for which it calls Python: from Python 3.13 on, this ends in a crash.
            error.__traceback__ = None
            raise


class _Reader(io.FileIO):
    """Reads a file's bytes, but refuses a global heap in which the HDF5 library loops forever.

    The library (at least up to 2.0) walks through a heap by adding the size that each object
    claims. The object of free space may claim 0, and a huge size becomes 0 or less when the library
    adds the header in 64 bits (HDF5 file format, "Global Heap").
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.num_bytes = os.fstat(self.fileno()).st_size
        self._num_checked = 0

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        num_read = super().readinto(buffer) or 0
        # A mark may lie across two reads.
        margin = len(_HEAP_MARK) - 1
        # pread leaves the file's position as it is, which the library relies on.
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
            # The library itself refuses this heap.
            return
        # Heaps that overlap would make this check itself take forever.
        self._num_checked += size
        if self._num_checked > _MAX_CHECKS * self.num_bytes:
            raise OSError("has heaps within heaps")
        heap = os.pread(self.fileno(), size, address)
        place = _HEAP_HEADER_BYTES
        while place + _HEAP_HEADER_BYTES <= len(heap):
            number, num_bytes = struct.unpack_from("<H6xQ", heap, place)
            # The size of free space includes its header.
            taken = num_bytes if number == 0 else _HEAP_HEADER_BYTES + -(-num_bytes // 8) * 8
            if not _HEAP_HEADER_BYTES <= taken <= len(heap) - place:
                raise OSError("has a broken global heap")
            place += taken


def open_dataset(file: File, name: str, dtype: np.dtype[Any], ndim: int) -> h5py.Dataset:
    """Return a dataset of numbers that lies entirely in `file`, contiguous or in chunks.

    Raises:
        ValueError: The dataset is missing, a link, of another type, filtered, or incomplete.
    """
    dataset = _open_stored(file, name, ndim)
    if dataset.dtype != dtype:
        raise ValueError(f"{name} should be {dtype}, found {dataset.dtype}")
    _check_size(file, dataset, math.prod(dataset.shape) * dtype.itemsize)
    return dataset


def open_strings(file: File, name: str) -> h5py.Dataset:
    """Return a dataset of N strings of variable length that lie entirely in `file`.

    Raises:
        ValueError: As `open_dataset`, or the strings together claim to be longer than the file.
    """
    dataset = _open_stored(file, name, ndim=1)
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind is None or kind.length is not None:
        raise ValueError(f"{name} should be strings of variable length, found {dataset.dtype}")
    _check_size(file, dataset, len(dataset) * _STRING_ENTRY.itemsize)
    # Many strings may share one place in the file, and fill the memory when they are read.
    num_bytes = 0
    for offset, size in _pieces(dataset):
        size -= size % _STRING_ENTRY.itemsize
        # Only lengths are read here. Reading the strings would already take the memory.
        entries = np.frombuffer(os.pread(file.reader.fileno(), size, offset), _STRING_ENTRY)
        num_bytes += int(entries["length"].sum(dtype=np.int64))
    if num_bytes > file.reader.num_bytes:
        raise ValueError(f"{name} claims {num_bytes:,} bytes of text, more than the file holds")
    return dataset


def read_strings(dataset: h5py.Dataset, start: int, stop: int) -> list[str]:
    """Return the strings `start` to `stop - 1`."""
    return [name.decode("utf-8", "surrogateescape") for name in dataset[start:stop]]


def encode_strings(strings: Iterable[str]) -> list[bytes]:
    """Return strings as bytes; surrogate escapes become the bytes that were read."""
    return [text.encode("utf-8", "surrogateescape") for text in strings]


def read_attribute(file: File, name: str) -> str | int | None:
    """Return an attribute of the root group, a text or an integer; None if it is missing.

    Raises:
        ValueError: The attribute has another type, or is longer than any attribute of ours.
    """
    if not h5py.h5a.exists(file.id, name.encode()):
        return None
    attribute = h5py.h5a.open(file.id, name.encode())
    dtype = attribute.dtype
    is_text = h5py.check_string_dtype(dtype) is not None
    if attribute.shape != () or not (is_text or dtype.kind in "iu"):
        raise ValueError(f"attribute {name} should be a text or an integer, found {dtype}")
    # This must be known before the value is read: reading allocates the claimed size.
    if attribute.get_storage_size() > _MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} has {attribute.get_storage_size():,} bytes; refused")
    value = file.attrs[name]
    if not is_text:
        return int(value)
    # A text of variable length stores only an address, so that its length shows here.
    text = value if isinstance(value, str) else bytes(value).decode("utf-8")
    if len(text) > _MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name} is a text of {len(text):,} letters; refused")
    return text


def _open_stored(file: File, name: str, ndim: int) -> h5py.Dataset:
    # A soft or external link could lead to any other file on the machine.
    if type(file.get(name, getlink=True)) is not h5py.HardLink:
        raise ValueError(f"{name} is missing or a link, which is refused")
    # Only now: `file[name]` would have followed a link.
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or len(dataset.shape or ()) != ndim:
        raise ValueError(f"{name} should be a dataset of {ndim} dimensions, found {dataset}")
    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or properties.get_external_count():
        raise ValueError(f"{name} lies in other files, or in the header; refused")
    # A few compressed bytes can become any amount of memory.
    if properties.get_nfilters():
        raise ValueError(f"{name} is compressed or filtered, which is refused")
    return dataset


def _check_size(file: File, dataset: h5py.Dataset, num_bytes: int) -> None:
    """Raise ValueError if fewer bytes are stored; HDF5 would fill up with zeros."""
    stored = dataset.id.get_storage_size()
    end = max((offset + size for offset, size in _pieces(dataset)), default=0)
    if num_bytes > stored or max(num_bytes, end) > file.reader.num_bytes:
        raise ValueError(f"{dataset.name} reaches beyond the end of the file, or is not written")


def _pieces(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    """Return the offset and the size of each piece of a dataset in the file."""
    if dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return [] if offset is None else [(offset, dataset.id.get_storage_size())]
    pieces: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda chunk: pieces.append((chunk.byte_offset, chunk.size)))
    return pieces

"""Reading files of `torch.save` as NumPy arrays, without running any code that a file names.

A `.pt` file is a zip archive: `data.pkl` holds the objects, and `data/KEY` the numbers of a tensor
(https://docs.pytorch.org/docs/stable/notes/serialization.html). torch's own weights-only loader
neither reads pickle protocol 4, which the fork's v2.0 wrote, nor compares checksums.
"""

from __future__ import annotations

import functools
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from virnucpro.errors import CheckpointError, first_line

Array = np.ndarray[Any, np.dtype[Any]]

# fmt: off
# The opcodes of containers, tensors and arrays; all others make objects, or allocate memory.
# An allow-list, as below: a new opcode of Python must not get in by itself.
_OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
)
# fmt: on


def is_zip(path: Path) -> bool:
    """Tell whether `path` is a zip archive, which torch.save has written since torch 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_torch_file(path: Path) -> Any:
    """Return the object in a file of `torch.save`, with NumPy arrays for tensors and arrays.

    Raises:
        CheckpointError: The file is damaged, or holds more than numbers, text and containers; no
            code in it was run. The caller adds the path.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _check_archive(path, archive)
            return _Unpickler(archive, root).load()
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError("does not fit in this machine's memory") from None
    # A damaged or hostile file can break the readers in any way.
    except Exception as error:
        raise CheckpointError(
            f"cannot be read as a file of torch.save ({first_line(error)}); it is damaged or holds "
            "more than numbers, text and containers"
        ) from error


def _check_archive(path: Path, archive: zipfile.ZipFile) -> str:
    """Return the name of the archive's root directory; refuse archives that torch did not write."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError("is compressed, which torch.save never does; refused")
    # Entries may overlap in a hostile archive, so that a small file unpacks to terabytes.
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError("claims to hold more than its size; refused")
    # Two entries of one name: readers differ in which of them they take.
    names = [entry.filename for entry in entries]
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1 or len(set(names)) != len(names):
        raise CheckpointError("is a zip archive, but not one of torch.save")
    if f"{roots[0]}/byteorder" in names and archive.read(f"{roots[0]}/byteorder") != b"little":
        raise CheckpointError("was written on a big-endian machine, which virnucpro does not read")
    return roots[0]


class _Unpickler(pickle._Unpickler):
    """Reads the objects; only Python's own implementation allows us to leave out opcodes."""

    dispatch: ClassVar = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (getattr(pickle, name) for name in _OPCODES)
    }

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        objects = archive.read(f"{root}/data.pkl")
        super().__init__(io.BytesIO(objects))
        self._room = len(objects)
        self._read_storage = functools.cache(
            lambda key: archive.read(f"{root}/data/{key}")  # which compares the CRC-32
        )

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[full_name]
        if full_name == "_codecs.encode":
            return self._encode
        # An allow-list: a list of what is forbidden would always lack something.
        if full_name not in _FUNCTIONS:
            raise CheckpointError(
                f"refused, because it names {full_name}, and loading it could run code"
            )
        # A pickle may set attributes of a function; a new object each time makes them harmless.
        return functools.partial(_FUNCTIONS[full_name])

    def _encode(self, text: str, encoding: str) -> bytes:
        # A pickle could turn a text that it holds once into bytes any number of times.
        self._room -= len(text)
        if encoding != "latin1" or self._room < 0:
            raise CheckpointError("holds bytes in a form that torch.save never writes; refused")
        return text.encode("latin1")

    def persistent_load(self, saved_id: Any) -> Array:
        kind, dtype, key, _, num_items = saved_id
        if kind != "storage":
            raise ValueError(f"unknown persistent id {kind!r}")
        # A view, no copy: many tensors may share one storage.
        return np.frombuffer(self._read_storage(key), dtype, num_items)


def _rebuild_tensor(
    storage: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Array:
    # NumPy refuses tensors that reach beyond the storage. Strides of 0 would make a huge tensor
    # out of one number.
    if any(stride < 1 for stride, size in zip(strides, shape, strict=True) if size > 1):
        raise ValueError("a tensor that repeats its numbers")
    size = storage.itemsize
    return np.ndarray(
        shape, storage.dtype, storage, offset * size, tuple(stride * size for stride in strides)
    )


class _Dtype:
    """Replaces numpy.dtype, because a pickle can make NumPy's own corrupt memory."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = {"f2": "<f2", "f4": "<f4", "f8": "<f8", "i4": "<i4", "i8": "<i8", "b1": "?"}[
            name
        ]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in "<|":
            raise ValueError("numbers in big-endian order")


class PickledArray:
    """Replaces numpy.ndarray for the same reason; `numpy.asarray` turns it into an array."""

    def __init__(self, *_: Any) -> None:
        self.array: Array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        numbers = np.frombuffer(content, dtype.dtype)
        self.array = numbers.reshape(shape, order="F" if is_fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.array, dtype, copy=bool(copy))


def _make_scalar(dtype: _Dtype, content: bytes) -> Any:
    return np.frombuffer(content, dtype.dtype, 1)[0].item()


_STORAGE_DTYPES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    # Occurs as an argument only.
    "numpy.ndarray": "ndarray",
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "collections.OrderedDict": dict,
    "numpy.dtype": _Dtype,
    # NumPy 2 moved these.
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy._core.multiarray._reconstruct": PickledArray,
    "numpy._core.multiarray.scalar": _make_scalar,
}

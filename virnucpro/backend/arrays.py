"""The array types of the annotations, and rows in blocks and spans."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

# With the published models, the features of so many rows take 220 MB.
_ROWS_AT_ONCE = 1 << 14


def split_rows(start: int, stop: int) -> Iterator[slice]:
    """Yield slices that cover the rows `start` to `stop - 1`, each small enough for the memory."""
    for first in range(start, stop, _ROWS_AT_ONCE):
        yield slice(first, min(first + _ROWS_AT_ONCE, stop))


def number_spans(start: Int64Array, length: Int64Array) -> Int64Array:
    """Return the numbers from each start on, as many as each length says, end to end: int64."""
    before = np.cumsum(length) - length
    numbers: Int64Array = np.repeat(start - before, length) + np.arange(length.sum())
    return numbers

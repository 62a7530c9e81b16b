"""Windows: overlapping pieces of records that are longer than a model reads.

Shapes: R records, W windows of all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.sequences.frame_store import RecordStore, SequenceSource, open_record_store

# With the widest models, the embeddings of so many windows take 0.7 GB in float64.
_WINDOWS_AT_ONCE = 1 << 14


class WindowSource(SequenceSource):
    """The windows of a store's records. A row is a window, in the order of the records.

    A record of up to `size` letters is one window. A longer one is cut into windows of `size`
    letters. A window begins in the middle of the previous one. The last window may be shorter.
    """

    def __init__(self, store: RecordStore, size: int | None) -> None:
        """Cut the records of `store`; `size` is None if each record is one window."""
        super().__init__(store.directory, "record")
        self.size = size

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the path travels to a worker, which opens the store for itself.
        return _open_windows, (self.directory, self.size)

    def __len__(self) -> int:
        return int(self.first_windows[-1])

    @cached_property
    def first_windows(self) -> Int64Array:
        """The first window of each record, and the number of all windows: int64 (R + 1,)."""
        lengths = self._records.record_lengths
        counts = np.ones(len(lengths), np.int64)
        if self.size is not None:
            # Minus twice rounds up: a record that is one letter too long needs a second window.
            counts += -(-(lengths - self.size).clip(0) // self._step)
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def lengths(self) -> Int64Array:
        """Number of letters in each window: int64 (W,)."""
        return self._locate(np.arange(len(self)))[2]

    @cached_property
    def representatives(self) -> Int64Array:
        """For each window the same window of the first record with the same sequence."""
        windows = np.arange(len(self))
        records, _, _ = self._locate(windows)
        # Equal records have equal windows, so it is enough to compare whole records.
        first_equal = np.asarray(super().representatives)[records]
        return windows - self.first_windows[records] + self.first_windows[first_equal]

    def get_many(self, rows: Int64Array | Sequence[int]) -> list[str]:
        """Return the sequences of these windows, upper-case, in their order."""
        return self._records.read_spans(*self._locate(np.asarray(rows, np.int64)))

    def split_records(self, records: Int64Array) -> Iterator[Int64Array]:
        """Yield records in blocks whose windows are few enough for the memory.

        A record that alone has more windows begins a block.

        Args:
            records: int64 (n,), in ascending order.
        """
        # By windows and not by records: a genome has thousands of them.
        ends = np.cumsum(self.first_windows[records + 1] - self.first_windows[records])
        last = np.flatnonzero(np.diff(ends // _WINDOWS_AT_ONCE))
        yield from np.split(records, last + 1)

    @property
    def _step(self) -> int:
        assert self.size is not None
        # Half a window: a place at the edge of one window is in the middle of another.
        return max(1, self.size // 2)

    @cached_property
    def _records(self) -> RecordStore:
        return open_record_store(self.directory)

    def _locate(self, windows: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Return the record of each window, and its start and its length there."""
        # A window belongs to the last record that begins at it or before it.
        records = np.searchsorted(self.first_windows, windows, "right") - 1
        length = self._records.record_lengths[records]
        if self.size is None:
            return records, np.zeros_like(windows), length
        start = (windows - self.first_windows[records]) * self._step
        return records, start, np.minimum(length - start, self.size)


def _open_windows(directory: Any, size: int | None) -> WindowSource:
    return WindowSource(open_record_store(directory), size)

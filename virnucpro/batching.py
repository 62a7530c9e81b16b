"""Which sequences are embedded together: cost-sorted, token-budgeted batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from virnucpro.frame_store import SequenceSource

IntArray = np.ndarray[Any, np.dtype[np.int64]]

_ROWS_AT_ONCE = 65_536


def unique_rows(source: SequenceSource) -> IntArray:
    """Return the rows that stand for themselves: each distinct sequence once, ascending."""
    representatives = np.asarray(source.representatives)
    return np.flatnonzero(representatives == np.arange(len(representatives)))


def measure_costs(
    token_cost: Callable[[str], int], source: SequenceSource, rows: IntArray
) -> IntArray:
    """Return what a backend says each of `rows` costs, in tokens, aligned with `rows`."""
    costs = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = source.get_many(rows[start : start + _ROWS_AT_ONCE])
        costs[start : start + len(block)] = [token_cost(sequence) for sequence in block]
    return costs


@dataclass(frozen=True)
class Batches:
    """Batches of rows, longest sequences first.

    The first batch is the largest in memory, so that a budget too big for the device fails at
    once and not after hours; and the shortest come last, so that processes finish together.

    Attributes:
        rows: Every row once, sorted by falling cost.
        costs: In tokens, aligned with `rows`.
        starts: Where each batch begins in `rows`, and the end of the last.
    """

    rows: IntArray
    costs: IntArray
    starts: IntArray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        # Lists, because Accelerate asks a batch for its truth, which an array refuses.
        for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.rows[start:stop].tolist()

    def without(self, finished: IntArray) -> Batches:
        """Return the batches less the rows in `finished`, their composition otherwise kept.

        A resumed run thus computes the same batches as an undisturbed one, to the last bit.
        """
        kept = ~np.isin(self.rows, finished)
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return Batches(self.rows[kept], self.costs[kept], np.unique(starts))

    def share(self, process_index: int, num_processes: int) -> tuple[IntArray, IntArray]:
        """Return (rows, tokens) of each batch that one of several processes takes in turn."""
        totals = np.concatenate([[0], np.cumsum(self.costs)])
        mine = slice(process_index, None, num_processes)
        return np.diff(self.starts)[mine], np.diff(totals[self.starts])[mine]


def plan_batches(rows: IntArray, costs: IntArray, budget_tokens: int) -> Batches:
    """Return batches whose longest sequence times their number of sequences fits the budget.

    Sequences in a batch are of about equal cost, so that the padding which some backends need
    stays small. One sequence over the budget makes a batch of its own. Equal costs keep the order
    of `rows`, which makes the plan reproducible.
    """
    order = np.argsort(-costs, kind="stable")
    sorted_costs = costs[order]
    starts = [0]
    while starts[-1] < len(order):
        longest = max(1, int(sorted_costs[starts[-1]]))
        starts.append(min(len(order), starts[-1] + max(1, budget_tokens // longest)))
    return Batches(rows[order], sorted_costs, np.asarray(starts, dtype=np.int64))


class BatchSampler:
    """Hands batches to a DataLoader.

    It has no `batch_size` on purpose: Accelerate drops rows from batches of varying size if a
    sampler has one.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class RowsDataset:
    """A map-style dataset that fetches a whole batch of rows from a source at once."""

    def __init__(self, source: SequenceSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, rows: Sequence[int]) -> tuple[IntArray, list[str]]:
        """Return the rows and their sequences."""
        row_array = np.asarray(rows, dtype=np.int64)
        return row_array, self.source.get_many(row_array)

"""Which sequences are embedded together: cost-sorted, token-budgeted batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from virnucpro.sequences.frame_store import SequenceSource

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

    The first batch holds the longest sequences, so that what does not fit the device shows at once
    and not after hours; the shortest come last, so that processes finish together.

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

    def __getitem__(self, index: int) -> IntArray:
        """Return the rows of one batch."""
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def cost(self, index: int) -> int:
        """Return what the rows of one batch cost, in tokens."""
        return int(self.costs[self.starts[index] : self.starts[index + 1]].sum())

    def without(self, finished: IntArray) -> Batches:
        """Return the batches less the rows in `finished`, their composition otherwise kept.

        A resumed run thus computes the same batches as an undisturbed one, to the last bit.
        """
        kept = ~np.isin(self.rows, finished)
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return Batches(self.rows[kept], self.costs[kept], np.unique(starts))


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


class ClaimedBatches:
    """Hands a DataLoader the batches that this process claims, one after the other.

    All processes take from one list, longest first, each whenever it is free: greedy list
    scheduling, which balances equal and unequal devices alike. The loader's look-ahead decides how
    far claims run ahead of the work.

    It has no `batch_size` on purpose: Accelerate loses rows of batches of varying size if a
    sampler has one.

    Attributes:
        claimed: Indices of the claimed batches, which the loader returns in this order; whoever
            receives the batches takes them from the left.
    """

    def __init__(self, batches: Batches, claim: Callable[[], int]) -> None:
        self._batches = batches
        self._claim = claim
        self.claimed: deque[int] = deque()

    def __iter__(self) -> Iterator[IntArray]:
        while (index := self._claim()) < len(self._batches):
            self.claimed.append(index)
            yield self._batches[index]

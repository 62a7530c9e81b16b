"""Which sequences are embedded together: batches sorted by cost, within a token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from virnucpro.backend.arrays import BoolArray, Int64Array, split_rows
from virnucpro.backend.interface import Backend
from virnucpro.errors import BackendError, brief
from virnucpro.sequences.frame_store import SequenceSource


def unique_rows(source: SequenceSource) -> Int64Array:
    """Return the rows that stand for others or for themselves, in ascending order."""
    stands = np.zeros(len(source.representatives), np.bool_)
    stands[source.representatives] = True
    return np.flatnonzero(stands)


def measure_costs(backend: Backend, source: SequenceSource, rows: Int64Array) -> Int64Array:
    """Return the cost of each of `rows`, in tokens, as the backend estimates it.

    Raises:
        BackendError: A cost is no positive integer.
    """
    costs = np.empty(len(rows), dtype=np.int64)
    # In blocks, because the text of all sequences may exceed the memory.
    for block in split_rows(0, len(rows)):
        found = [backend.token_cost(sequence) for sequence in source.get_many(rows[block])]
        array = np.asarray(found)
        # Numbers that are too large, or of several types, make an array of another kind.
        if array.dtype.kind != "i" or array.min() < 1:
            for cost in found:
                if not isinstance(cost, (int, np.integer)) or not 0 < cost < 2**63:
                    raise BackendError(
                        f"token_cost of backend {backend.info.name} returned {brief(cost)}, and a "
                        "positive integer was expected; report this to its authors"
                    )
        costs[block] = array
    return costs


@dataclass(frozen=True)
class Batches:
    """Batches of rows, with the longest sequences first.

    So a batch that does not fit the device shows at once, and not after hours. The shortest
    sequences come last, so that all processes finish at about the same time.

    Attributes:
        rows: Every row once, with the highest cost first.
        costs: The cost of each of `rows`, in tokens.
        starts: Where each batch begins in `rows`, and where the last one ends.
    """

    rows: Int64Array
    costs: Int64Array
    starts: Int64Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Int64Array:
        """Return the rows of one batch."""
        return self.rows[self.starts[index] : self.starts[index + 1]]

    def cost(self, index: int) -> int:
        """Return the cost of one batch, in tokens."""
        return int(self.costs[self.starts[index] : self.starts[index + 1]].sum())

    def without(self, finished: Int64Array) -> Batches:
        """Return the batches without the rows in `finished`; the other rows stay in their batches.

        So a resumed run computes the same batches as an undisturbed one. Other batches would round
        differently.
        """
        return self._keep(~np.isin(self.rows, finished))

    def shard(self, index: int, num_shards: int) -> Batches:
        """Return every `num_shards`-th batch from batch `index` on: shards have about equal cost.

        Whole batches are dealt out, because other batches would round differently.
        """
        # In turn, and not in ranges: the first batches hold the longest sequences.
        is_ours = np.arange(len(self)) % num_shards == index
        return self._keep(np.repeat(is_ours, np.diff(self.starts)))

    def _keep(self, kept: BoolArray) -> Batches:
        # A batch without rows has equal start and end, so `unique` drops it.
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return Batches(self.rows[kept], self.costs[kept], np.unique(starts))


def plan_batches(
    rows: Int64Array, costs: Int64Array, batch_tokens: int, min_tokens: int = 0
) -> Batches:
    """Return batches: the number of sequences times the longest one is at most `batch_tokens`.

    The sequences of a batch have similar costs, so a backend that pads them needs little padding. A
    longer sequence gets a batch of its own. Sequences below `min_tokens` are never in a
    batch with others.
    """
    # Stable: rows of equal cost keep their order, so that every process makes the same plan.
    order = np.argsort(-costs, kind="stable")
    sorted_costs = costs[order]
    num_long = int((costs >= min_tokens).sum())
    starts = [0]
    while starts[-1] < len(order):
        # Costs fall, so the first sequence of a batch is its longest. Padding makes all as long.
        longest = max(1, int(sorted_costs[starts[-1]]))
        limit = num_long if starts[-1] < num_long else len(order)
        starts.append(min(limit, starts[-1] + max(1, batch_tokens // longest)))
    return Batches(rows[order], sorted_costs, np.asarray(starts, dtype=np.int64))


class ClaimedBatches:
    """A batch sampler for a DataLoader: it yields the batches that this process claims.

    All processes claim from one list, and each claims when it is free. This is greedy list
    scheduling: it balances devices of equal and of different speed. The loader claims as many
    batches ahead of the work as it prefetches.

    It has no attribute `batch_size`: with one, Accelerate assumes batches of equal size and
    silently loses rows.

    Attributes:
        claimed: The indices of claimed batches, in the order in which the loader returns them. The
            receiver of a batch removes its index from the left.
        taken: The indices of all batches that this process has ever claimed.
    """

    def __init__(self, batches: Batches, claim: Callable[[], int]) -> None:
        self._batches = batches
        self._claim = claim
        self.claimed: deque[int] = deque()
        self.taken: list[int] = []

    def __iter__(self) -> Iterator[Int64Array]:
        # The numbers of a process always rise. Others do not come from the launch, and end here.
        last = -1
        while last < (index := self._claim()) < len(self._batches):
            last = index
            # Before `yield`: the loop must find the index when the batch arrives.
            self.claimed.append(index)
            self.taken.append(index)
            yield self._batches[index]

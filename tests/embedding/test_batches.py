from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.backend.testing import ToyBackend
from virnucpro.embedding.batches import ClaimedBatches, measure_costs, plan_batches, unique_rows
from virnucpro.errors import BackendError

cost_lists = st.lists(st.integers(min_value=0, max_value=300), max_size=200)


def make_plan(costs: list[int], budget: int) -> Any:
    return plan_batches(np.arange(len(costs)) * 3, np.asarray(costs, dtype=np.int64), budget)


@given(costs=cost_lists, budget=st.integers(min_value=1, max_value=1000))
def test_every_row_is_in_one_batch_within_the_budget(costs: list[int], budget: int) -> None:
    batches = [batch.tolist() for batch in make_plan(costs, budget)]

    assert sorted(row for batch in batches for row in batch) == [3 * i for i in range(len(costs))]
    for batch in batches:
        longest = max(costs[row // 3] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(costs=cost_lists, min_tokens=st.integers(min_value=0, max_value=301))
def test_short_sequences_have_batches_of_their_own(costs: list[int], min_tokens: int) -> None:
    rows, tokens = np.arange(len(costs)), np.asarray(costs, dtype=np.int64)
    batches = plan_batches(rows, tokens, 1000, min_tokens)
    assert sorted(row for batch in batches for row in batch.tolist()) == rows.tolist()
    assert all(len(set(tokens[batch] < min_tokens)) == 1 for batch in batches)


@given(costs=cost_lists, budget=st.integers(min_value=1, max_value=1000))
def test_batches_come_longest_first_and_equal_costs_keep_their_order(
    costs: list[int], budget: int
) -> None:
    rows = [row for batch in make_plan(costs, budget) for row in batch]

    assert rows == sorted(rows, key=lambda row: (-costs[row // 3], row))


@given(
    costs=cost_lists,
    budget=st.integers(min_value=1, max_value=1000),
    finished=st.sets(st.integers(min_value=0, max_value=199)),
)
def test_finished_rows_leave_the_composition_of_other_batches_alone(
    costs: list[int], budget: int, finished: set[int]
) -> None:
    plan = make_plan(costs, budget)
    done = {3 * row for row in finished}

    remaining = plan.without(np.asarray(sorted(done), dtype=np.int64))

    left = [[row for row in batch if row not in done] for batch in plan]
    assert [batch.tolist() for batch in remaining] == [batch for batch in left if batch]


@given(costs=cost_lists, turns=st.lists(st.integers(min_value=0, max_value=3), max_size=60))
def test_every_batch_is_claimed_once_in_order_whoever_is_free(
    costs: list[int], turns: list[int]
) -> None:
    plan = make_plan(costs, 400)
    claim = itertools.count().__next__
    processes = [ClaimedBatches(plan, claim) for _ in range(4)]
    walks = [iter(process) for process in processes]
    # Some take turns as they please, then the first takes what is left.
    taken = [next(walks[turn], None) for turn in turns] + list(walks[0])

    batches = [batch.tolist() for batch in taken if batch is not None]
    assert batches == [batch.tolist() for batch in plan]
    assert sorted(i for process in processes for i in process.claimed) == list(range(len(plan)))
    assert sum(plan.cost(index) for index in range(len(plan))) == sum(costs)


class ListSource:
    def __init__(self, sequences: list[str]) -> None:
        self.sequences = sequences
        self.representatives = np.asarray([sequences.index(s) for s in sequences], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.sequences)

    def get_many(self, rows: np.ndarray[Any, Any]) -> list[str]:
        return [self.sequences[row] for row in rows]


def test_unique_rows_keep_the_first_of_identical_sequences() -> None:
    source = ListSource(["AC", "G", "AC", "T", "G"])

    assert unique_rows(source).tolist() == [0, 1, 3]


def test_costs_are_aligned_with_the_rows_asked_for() -> None:
    source = ListSource(["A" * n for n in range(10)])

    costs = measure_costs(Costing(lambda length: length + 2), source, np.asarray([7, 3]))

    assert costs.tolist() == [9, 5]


@pytest.mark.parametrize("make", [np.uint8, np.uint64, lambda n: np.uint64(n) if n > 5 else n])
def test_costs_may_be_any_integers_of_numpy(make: Callable[[int], Any]) -> None:
    source = ListSource(["A" * n for n in range(10)])
    assert measure_costs(Costing(make), source, np.asarray([7, 3])).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("cost", "found"),
    [
        (lambda length: length / 2, "3.5"),
        (lambda length: length - 3, "0"),
        (lambda length: -length, "-7"),
        (lambda length: None, "None"),
        (lambda length: float("nan"), "nan"),
        (lambda length: 10**30, "10+"),
    ],
)
def test_a_cost_that_is_no_positive_integer_is_refused(
    cost: Callable[[int], Any], found: str
) -> None:
    source = ListSource(["A" * n for n in range(10)])
    with pytest.raises(BackendError, match=f"token_cost of backend toy returned {found}, and a"):
        measure_costs(Costing(cost), source, np.asarray([7, 3]))


class Costing(ToyBackend):
    """A backend with other costs."""

    def __init__(self, cost: Callable[[int], Any]) -> None:
        self._cost = cost

    def token_cost(self, sequence: str) -> int:
        return cast("int", self._cost(len(sequence)))

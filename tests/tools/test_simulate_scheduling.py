from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.simulate_scheduling import (
    MODELS,
    plan_tokens,
    simulate,
    simulate_static,
    taper,
    write_random_reads,
)

batch_lists = st.lists(st.floats(min_value=0.01, max_value=10), min_size=1, max_size=80).map(
    lambda seconds: np.sort(seconds)[::-1]
)
speed_lists = st.lists(st.floats(min_value=0.05, max_value=2), min_size=1, max_size=12).map(
    np.asarray
)


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "ahead": draw(st.integers(min_value=0, max_value=4)),
        "claims_per_s": draw(st.sampled_from([2.0, 100.0, math.inf])),
        "latency_s": draw(st.sampled_from([0.0, 0.1])),
        "may_decline": draw(st.booleans()),
    }


# Known cases


def test_the_free_process_takes_the_next_batch() -> None:
    schedule = simulate(np.array([3.0, 2.0, 2.0, 1.0]), np.ones(2), ahead=0)

    assert schedule.end_s.tolist() == [4.0, 4.0]
    assert schedule.efficiency == 1


def test_a_fast_process_takes_more() -> None:
    schedule = simulate(np.ones(5), np.array([4.0, 1.0]), ahead=0)

    assert schedule.num_batches.tolist() == [4, 1]
    assert schedule.end_s.tolist() == [1.0, 1.0]


def test_static_shares_wait_for_the_slowest() -> None:
    schedule = simulate_static(np.ones(8), np.array([1.0, 0.25]))

    assert schedule.end_s.tolist() == [4.0, 16.0]
    assert schedule.losses == pytest.approx({"start": 0, "claims": 0, "end": 0.6})


def test_what_is_claimed_ahead_stays_with_a_slow_process() -> None:
    schedule = simulate(np.ones(6), np.array([1.0, 0.1]), ahead=2)

    assert schedule.num_batches.tolist() == [3, 3]
    assert schedule.makespan_s == pytest.approx(30)


def test_the_way_to_the_store_is_hidden_by_claiming_ahead() -> None:
    batch_s, speeds = np.ones(10), np.ones(1)

    late = simulate(batch_s, speeds, ahead=0, latency_s=0.5)
    hidden = simulate(batch_s, speeds, ahead=1, latency_s=0.5)

    assert late.makespan_s == pytest.approx(15)
    assert hidden.makespan_s == pytest.approx(10.5)


def test_a_slow_store_sets_the_pace() -> None:
    schedule = simulate(np.full(100, 0.01), np.ones(50), claims_per_s=10)

    assert schedule.makespan_s == pytest.approx(10.01)
    assert schedule.losses["claims"] > 0.7


def test_processes_that_start_late_do_less() -> None:
    schedule = simulate(np.ones(10), np.ones(2), np.array([0.0, 4.0]), ahead=0)

    assert schedule.num_batches.tolist() == [7, 3]
    assert schedule.end_s.tolist() == [7.0, 7.0]


def test_a_slow_process_leaves_the_last_batches_to_the_others() -> None:
    batch_s, speeds = np.ones(2000), np.array([1.0, 1.0, 1.0, 0.02])

    greedy = simulate(batch_s, speeds, ahead=2)
    declining = simulate(batch_s, speeds, ahead=2, may_decline=True)

    assert greedy.spread_s > 90
    assert declining.makespan_s < greedy.ideal_s + 5


# Always true


@given(batch_lists, speed_lists, settings())
def test_all_work_is_done_once(
    batch_s: np.ndarray, speeds: np.ndarray, settings: dict[str, Any]
) -> None:
    for schedule in (simulate(batch_s, speeds, **settings), simulate_static(batch_s, speeds)):
        assert schedule.num_batches.sum() == len(batch_s)
        assert schedule.busy_s @ speeds == pytest.approx(batch_s.sum())
        assert schedule.ideal_s == pytest.approx(batch_s.sum() / speeds.sum())
        assert schedule.makespan_s >= schedule.ideal_s * (1 - 1e-9)
        assert schedule.efficiency + sum(schedule.losses.values()) == pytest.approx(1)


@given(batch_lists, speed_lists, st.integers(min_value=0, max_value=4))
def test_all_finish_within_the_batches_claimed_by_the_slowest(
    batch_s: np.ndarray, speeds: np.ndarray, ahead: int
) -> None:
    schedule = simulate(batch_s, speeds, ahead=ahead)

    tail_s = (ahead + 1) * batch_s.max() / speeds.min()
    assert schedule.makespan_s <= schedule.ideal_s + tail_s + 1e-9
    assert schedule.spread_s <= tail_s + 1e-9


@given(batch_lists, st.integers(min_value=1, max_value=12))
def test_equal_processes_keep_to_the_bound_of_list_scheduling(
    batch_s: np.ndarray, num_processes: int
) -> None:
    schedule = simulate(batch_s, np.ones(num_processes), ahead=0)

    # Graham's 2 - 1/m times the optimum, which is at least the ideal and the longest batch.
    bound = schedule.ideal_s + (1 - 1 / num_processes) * batch_s.max()
    assert schedule.makespan_s <= bound + 1e-9


@given(batch_lists, st.integers(1, 12), st.integers(0, 4))
def test_equal_processes_are_never_worse_off_than_with_static_shares(
    batch_s: np.ndarray, num_processes: int, ahead: int
) -> None:
    speeds = np.ones(num_processes)

    greedy, static = simulate(batch_s, speeds, ahead=ahead), simulate_static(batch_s, speeds)

    assert greedy.makespan_s <= static.makespan_s + (ahead + 1) * batch_s.max() + 1e-9


@given(st.lists(st.integers(1, 32_768), min_size=1, max_size=50), st.integers(1, 64))
def test_tapering_keeps_the_tokens(num_tokens: list[int], num_processes: int) -> None:
    tapered = taper(np.asarray(num_tokens, dtype=np.float64), num_processes, 2048)

    assert tapered.sum() == pytest.approx(sum(num_tokens))
    assert tapered.min() >= min(1024, *num_tokens)


# Batches of real sequences


def test_batches_are_those_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "reads.fa"
    write_random_reads(path, num_reads=300, length_bp=150)

    once = plan_tokens([str(path)], MODELS["esm2-3b"], 500, 1024, copies=1)
    thrice = plan_tokens([str(path)], MODELS["esm2-3b"], 500, 1024, copies=3)

    # 1,024 tokens hold 19 proteins of 50 residues, BOS and EOS.
    assert once[0] == 19 * 52
    assert len(thrice) == 3 * (len(once) - 1) + 1

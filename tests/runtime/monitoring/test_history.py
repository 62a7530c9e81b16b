"""Rates, the time that is left, and the sums of a pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.samples import make_history, make_sample, watch
from virnucpro.runtime.monitoring.gpu import GpuReading


def test_throughput_is_that_of_late():
    slow_then_fast = [*watch(200), make_sample(205, num_tokens=19_000)]
    process = make_history(slow_then_fast).processes[0]
    assert slow_then_fast[-13].num_tokens == 13_500
    assert process.tokens_per_second(1_205) == pytest.approx((19_000 - 13_500) / 60)


def test_throughput_falls_while_nothing_is_heard():
    process = make_history(watch(200)).processes[0]
    assert process.tokens_per_second(1_200) == pytest.approx(100)
    assert process.tokens_per_second(1_260) == pytest.approx(50)


def test_of_a_process_that_is_done_the_whole_pass_counts():
    done = make_sample(210, state="done", loop_seconds=190.0, num_tokens=9_500)
    process = make_history([*watch(200), done]).processes[0]
    assert process.tokens_per_second(2_000) == 50
    assert process.share("data") == pytest.approx(0.01 * 200 / 190)


def test_the_time_left_goes_by_cost_and_over_all_processes():
    # Rows are short at the end: nine tenths of the rows may be half of the work.
    history = make_history(
        watch(200, total_rows=10_000), watch(200, rank=1, speed=300, total_rows=10_000)
    )
    assert history.cost == 4 * 19_000
    assert history.share_done == 0.76
    assert history.seconds_left(1_200) == pytest.approx((100_000 - 76_000) / 400)


def test_the_time_left_is_not_known_while_nothing_moves():
    assert make_history(watch(10)).seconds_left(1_010) is None
    assert make_history(watch(15)).seconds_left(1_015) is not None
    stuck = [make_sample(at, cost=500) for at in range(10, 500, 5)]
    assert make_history(stuck).seconds_left(1_500) is None


def test_the_time_left_is_not_known_while_all_wait_for_one_that_stands_still():
    waiting = [make_sample(at, num_batches=180, state="waiting") for at in range(100, 125, 5)]
    history = make_history([*watch(95), *waiting], watch(95, rank=1))
    assert history.seconds_left(1_110) > 0
    assert history.seconds_left(1_120) is None


def test_the_time_left_does_not_take_loading_for_slowness():
    history = make_history(watch(20))
    assert history.seconds_left(1_020) == pytest.approx(99_000 / 100)


def test_another_pass_begins_anew():
    history = make_history(watch(100), watch(100, rank=1))
    history.add(make_sample(120, name="other embeddings", cost=7))
    assert (history.pass_name, history.cost, list(history.processes)) == (
        "other embeddings",
        7,
        [0],
    )
    # What the first pass did is not forgotten.
    assert [list(done) for done in history.summary().values()] == [[0, 1], [0]]


def test_utilization_is_a_mean_over_time():
    # The first minute is sampled more often, which must not count for more.
    samples = []
    for at, percent in [(10, 0), (11, 10), (12, 10), (13, 10), (20, 80), (30, 80)]:
        gpu = GpuReading(percent, 10 + at, 1_000, None, 40)
        samples.append(make_sample(at, gpu=gpu))
    samples.append(replace(make_sample(31), state="done", gpu=GpuReading(0, 500)))
    found = make_history(samples).summary()["toy embeddings"][0]
    assert found["gpu_utilization_percent"] == round((3 * 10 + 17 * 80) / 20, 1)
    assert found["gpu_memory_bytes"] == 40
    assert found["gpu_temperature_celsius"] == 40
    assert found["gpu_power_watts"] is None
    assert found["device_share"] == 0.98
    assert found["tokens_per_second"] == 100

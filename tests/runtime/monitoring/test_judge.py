"""What is said of processes that are in trouble."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.samples import make_history, make_sample, watch
from virnucpro.runtime.monitoring.gpu import GpuReading
from virnucpro.runtime.monitoring.history import History
from virnucpro.runtime.monitoring.judge import Limits, find_trouble


def troubles(history: History, at: float) -> list[tuple[str, int]]:
    found = find_trouble(history, Limits(), 1_000 + at)
    return [(trouble.kind, trouble.rank) for trouble in found]


def test_processes_that_are_well_are_left_alone():
    for at in range(0, 300, 5):
        history = make_history(*[watch(at, rank=rank, speed=100 - rank) for rank in range(4)])
        assert troubles(history, at) == []


def test_a_process_that_is_not_heard_of():
    silent = watch(100, rank=2)
    history = make_history(watch(200), watch(200, rank=1), silent)
    assert troubles(history, 155) == []
    assert troubles(history, 160) == [("stalled", 2)]
    (trouble,) = find_trouble(history, Limits(), 1_160)
    assert trouble.message.startswith(
        "toy embeddings: process 2 (NVIDIA H200 on node2, pid 102) has finished no batch for 60 "
        "s, and a batch usually takes it 0.5 s: check on node2 whether"
    )


def test_a_process_that_is_heard_of_but_finishes_nothing():
    stuck = [replace(sample, num_batches=180) for sample in watch(200)[20:]]
    assert troubles(make_history(watch(95), stuck), 160) == [("stalled", 0)]


def test_slow_batches_are_given_time():
    # A batch takes 25 s.
    history = make_history(watch(110, speed=2))
    assert troubles(history, 300) == []
    assert troubles(history, 361) == [("stalled", 0)]


def test_a_process_that_never_begins_is_compared_with_the_others():
    alone = [make_sample(at, loop_seconds=0.0, num_batches=0) for at in (0, 500)]
    assert troubles(make_history(alone), 500) == []
    stuck = [replace(sample, rank=1, state="loading") for sample in alone]
    history = make_history(watch(500), stuck)
    assert troubles(history, 95) == []
    (trouble,) = find_trouble(history, Limits(), 1_500)
    assert "has not finished its first batch for 500 s, and others finished theirs after 10 s" in (
        trouble.message
    )


def test_who_waits_for_the_others_is_not_stalled():
    waiting = [make_sample(at, state="waiting", num_batches=180) for at in range(100, 400, 5)]
    assert troubles(make_history(waiting), 395) == []


@pytest.mark.parametrize(("speed", "found"), [(51, []), (49, [("slow", 1)])])
@pytest.mark.parametrize("num_peers", [1, 3])
def test_a_process_that_is_slower_than_its_peers(speed: int, found: list, num_peers: int):
    peers = [watch(400, rank=rank) for rank in (0, 2, 3)[:num_peers]]
    assert troubles(make_history(*peers, watch(400, rank=1, speed=speed)), 400) == found


def test_a_slow_process_is_described():
    gpu = GpuReading(temperature_celsius=91, power_watts=250.0)
    slow = watch(400, rank=1, speed=20, gpu=gpu)
    (trouble,) = find_trouble(make_history(watch(400), slow), Limits(), 1_400)
    assert (
        "makes 20 tokens/s, and others with the same device make 100: check on node1"
        in trouble.message
    )
    assert "(now 91 °C, 250.0 W)" in trouble.message


def test_a_lesser_device_may_be_slower():
    history = make_history(watch(400), watch(400, rank=1, speed=10, device="Tesla T4"))
    assert troubles(history, 400) == []


def test_a_gpu_that_waits_for_data():
    waiting = [
        replace(sample, data_seconds=0.3 * sample.loop_seconds) for sample in watch(400, rank=1)
    ]
    # Its GPU computes all the time.
    assert troubles(make_history(watch(400), waiting), 400) == []
    hungry = [replace(sample, device_seconds=0.7 * sample.loop_seconds) for sample in waiting]
    history = make_history(watch(400), hungry)
    (trouble,) = find_trouble(history, Limits(), 1_400)
    assert (trouble.kind, trouble.rank) == ("hungry", 1)
    assert "waits for data 30 % of the time: give more --dataloader-workers" in trouble.message
    on_cpu = make_history([replace(sample, device="cpu") for sample in hungry])
    assert troubles(on_cpu, 400) == []

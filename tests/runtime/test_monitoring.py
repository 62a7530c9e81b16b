"""What is seen of processes, and what is said of those that are in trouble."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from virnucpro.runtime.monitoring import Monitor, PassStatus, Place, RunState, Sample
from virnucpro.runtime.monitoring.gpu import GpuReading, open_gpu
from virnucpro.runtime.monitoring.history import History
from virnucpro.runtime.monitoring.judge import Limits, find_trouble
from virnucpro.runtime.monitoring.status import take_sample
from virnucpro.runtime.monitoring.summary import Summary

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
LOAD_S = 10.0
H200 = "NVIDIA H200"


def make_sample(at: float, rank: int = 0, speed: float = 100.0, **values) -> Sample:
    """Return a process `at` seconds after its pass began: a batch of 50 tokens each 50 / speed."""
    loop_seconds = max(0.0, at - LOAD_S)
    num_tokens = int(speed * loop_seconds) // 50 * 50
    sample = Sample(
        time=1_000 + at,
        rank=rank,
        host=f"node{rank}",
        pid=100 + rank,
        device=H200,
        pass_name="toy embeddings",
        state="embedding" if loop_seconds else "loading",
        total_rows=1_000,
        total_cost=100_000,
        budget_tokens=50,
        num_rows=num_tokens // 10,
        num_tokens=num_tokens,
        num_batches=num_tokens // 50,
        cost=num_tokens,
        load_seconds=min(at, LOAD_S),
        loop_seconds=loop_seconds,
        data_seconds=0.01 * loop_seconds,
        device_seconds=0.98 * loop_seconds,
        disk_seconds=0.1 * loop_seconds,
    )
    return replace(sample, **values)


def make_history(*processes: list[Sample]) -> History:
    history = History()
    for sample in sorted((s for samples in processes for s in samples), key=lambda s: s.time):
        history.add(sample)
    return history


def watch(until: float, **values) -> list[Sample]:
    """Return the samples of a process, every five seconds."""
    return [make_sample(at, **values) for at in range(0, int(until) + 1, 5)]


def troubles(history: History, at: float) -> list[tuple[str, int]]:
    found = find_trouble(history, Limits(), 1_000 + at)
    return [(trouble.kind, trouble.rank) for trouble in found]


# Rates and the time that is left


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
    history.add(make_sample(120, pass_name="other embeddings", cost=7))
    assert (history.pass_name, history.cost, list(history.processes)) == (
        "other embeddings",
        7,
        [0],
    )


# Trouble


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
        "toy embeddings: process 2 (NVIDIA H200 on node2, pid 102) has finished nothing for 60 s, "
        "and a batch takes it 0.5 s: look on node2 whether"
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
    assert "has not finished its first batch for 500 s, and others had theirs after 10 s" in (
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
        "makes 20 tokens/s, and others with the same device 100: look on node1" in trouble.message
    )
    assert "(now 91 °C, 250.0 W)" in trouble.message


def test_a_lesser_device_may_be_slower():
    history = make_history(watch(400), watch(400, rank=1, speed=10, device="Tesla T4"))
    assert troubles(history, 400) == []


def test_a_gpu_that_waits_for_data():
    hungry = [
        replace(sample, data_seconds=0.3 * sample.loop_seconds) for sample in watch(400, rank=1)
    ]
    history = make_history(watch(400), hungry)
    (trouble,) = find_trouble(history, Limits(), 1_400)
    assert (trouble.kind, trouble.rank) == ("hungry", 1)
    assert "waits for data 30 % of the time: give more --dataloader-workers" in trouble.message
    on_cpu = make_history([replace(sample, device="cpu") for sample in hungry])
    assert troubles(on_cpu, 400) == []


# The monitor of one process


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def do_pass(monitor: Monitor, name: str = "toy embeddings") -> PassStatus:
    status = PassStatus(name, total_rows=30, total_cost=300, budget_tokens=100)
    monitor.begin_pass(status)
    status.begin_loop()
    for _ in range(3):
        time.sleep(0.01)
        status.count_batch(num_rows=10, num_tokens=120, cost=100)
    status.end_loop()
    monitor.publish()
    monitor.end_pass()
    return status


def test_a_run_leaves_all_its_states(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with Monitor(path, Place(0, "node7", 42, "cpu")) as monitor:
        do_pass(monitor, "DNA")
        do_pass(monitor, "protein")
    start, *samples, end = read_lines(path)
    assert (start["kind"], start["num_processes"]) == ("start", 1)
    assert [(line["pass_name"], line["state"], line["num_rows"]) for line in samples] == [
        (name, state, num_rows)
        for name in ("DNA", "protein")
        for state, num_rows in (("loading", 0), ("waiting", 30), ("done", 30))
    ]
    assert samples[1]["host"] == "node7"
    assert samples[1]["batch_fill"] == 1.0
    assert samples[1]["tokens_per_second"] == pytest.approx(
        360 / samples[1]["loop_seconds"], rel=0.01
    )
    assert end["outcome"] == "finished"
    assert end["passes"]["protein"]["0"]["batch_fill"] == 1.0
    assert [line["time"] for line in (start, *samples, end)] == sorted(
        line["time"] for line in (start, *samples, end)
    )


def test_it_publishes_by_itself_and_warns_at_growing_intervals(tmp_path: Path, caplog):
    path = tmp_path / "metrics.jsonl"
    limits = Limits(stalled_seconds=0.1)
    with Monitor(path, interval_seconds=0.02, limits=limits) as monitor:
        status = PassStatus("toy embeddings", 100, 1_000, 10)
        monitor.begin_pass(status)
        status.begin_loop()
        status.count_batch(1, 10, 10)
        time.sleep(1.2)
    lines = read_lines(path)
    assert sum(line["kind"] == "sample" for line in lines) > 15
    warnings = [line["message"] for line in lines if line["kind"] == "warning"]
    assert 2 <= len(warnings) <= 5
    assert warnings == [record.getMessage() for record in caplog.records]


def test_what_ended_a_run_is_noted(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(KeyboardInterrupt), Monitor(path):
        raise KeyboardInterrupt
    assert read_lines(path)[-1]["outcome"] == "KeyboardInterrupt"


def test_a_resumed_run_goes_on_after_a_line_that_was_cut_off(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"time": 1.0, "kind": "start", "num_processes": 4}\n{"time": 2.0, "ki')
    with Monitor(path) as monitor:
        do_pass(monitor)
    state = RunState(path)
    assert len(list(state.read())) == 6
    assert (state.num_processes, state.outcome) == (1, "finished")


def test_a_full_disk_does_not_end_the_run(caplog):
    with Monitor(Path("/dev/full")) as monitor:
        do_pass(monitor)
    assert caplog.messages == ["/dev/full: no longer written (No space left on device)"]
    assert monitor.summary()["toy embeddings"][0]["batch_fill"] == 1.0


def test_a_store_that_is_gone_does_not_end_the_run(tmp_path: Path):
    torch_distributed = pytest.importorskip("torch.distributed")

    class Gone(torch_distributed.HashStore):
        def set(self, key, value):
            raise torch_distributed.DistStoreError("connection reset by peer")

    with Monitor(tmp_path / "metrics.jsonl", store=Gone()) as monitor:
        do_pass(monitor)
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["outcome"] == "finished"


# Several processes


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopped_process_is_named(tmp_path: Path):
    from torch.distributed import TCPStore

    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    path = tmp_path / "metrics.jsonl"
    program = [sys.executable, str(REPOSITORY / "tests/monitored_process.py")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [*program, str(rank), "3", str(store.port), str(path)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(3)
    ]
    state = RunState(path)

    def look() -> RunState:
        for _ in state.read():
            pass
        return state

    stopped = processes[1]
    try:
        wait_for(lambda: len(look().history.processes) == 3)
        wait_for(lambda: all(p.last.num_batches for p in look().history.processes.values()))
        stopped.send_signal(signal.SIGSTOP)
        named = f"process 1 (cpu on {os.uname().nodename}, pid {stopped.pid}) has finished nothing"
        # On a busy machine others may stand still for a moment, too.
        wait_for(lambda: any(named in warning for warning in look().warnings))
        stopped.send_signal(signal.SIGCONT)
        (tmp_path / "stop").touch()
        errors = [process.communicate(timeout=PATIENCE_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0]
    # The main process says it, and nobody else.
    assert named in errors[0]
    assert errors[1:] == ["", ""]
    look()
    assert state.outcome == "finished"
    assert state.history.is_done(3)


# Reading


def test_a_run_is_read_while_it_is_written(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    state = RunState(path)
    assert list(state.read()) == []
    start = '{"time": 5.0, "kind": "start", "num_processes": 2, "key_of_a_later_version": 1}\n'
    sample = json.dumps({"kind": "sample", "new": 1} | make_sample(50).to_json()) + "\n"
    path.write_text(start + sample[:100])
    assert len(list(state.read())) == 1
    path.write_text(start + sample)
    assert len(list(state.read())) == 1
    assert (state.num_processes, state.history.num_rows) == (2, make_sample(50).num_rows)
    assert list(state.read()) == []


def test_what_others_have_written_does_not_matter(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '7\n[]\n{}\nloss: 3\n{"time": 1.0, "kind": "sample", "rank": 0}\n{"time": "x"}\n'
    )
    with Monitor(path) as monitor:
        do_pass(monitor)
    state = RunState(path)
    assert len(list(state.read())) == 5
    assert state.outcome == "finished"


def test_a_file_that_takes_the_place_of_another_is_read_from_its_start(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    state = RunState(path)
    for _ in range(2):
        path.unlink(missing_ok=True)
        with Monitor(path) as monitor:
            do_pass(monitor)
        assert len(list(state.read())) == 5


def test_an_earlier_run_may_be_passed_over(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with Monitor(path) as monitor:
        do_pass(monitor)
    state = RunState(path, since=time.time())
    assert list(state.read()) == []
    with Monitor(path):
        assert [now.outcome for now in state.read()] == [None]


# Sums


def test_utilization_is_a_mean_over_time():
    # The first minute is sampled more often, which must not count for more.
    summary = Summary()
    for at, percent in [(10, 0), (11, 10), (12, 10), (13, 10), (20, 80), (30, 80)]:
        gpu = GpuReading(percent, 10 + at, 1_000, None, 40)
        summary.add(make_sample(at, gpu=gpu))
    summary.add(replace(make_sample(31), state="done", gpu=GpuReading(0, 500)))
    found = summary.to_dict()["toy embeddings"][0]
    assert found["gpu_utilization_percent"] == round((3 * 10 + 17 * 80) / 20, 1)
    assert found["gpu_memory_bytes"] == 40
    assert found["gpu_temperature_celsius"] == 40
    assert found["gpu_power_watts"] is None
    assert found["device_share"] == 0.98
    assert found["tokens_per_second"] == 100


# GPUs


def test_without_nvidia_there_is_nothing_to_read(caplog):
    assert open_gpu(None)() is None
    assert open_gpu("GPU-00000000-0000-0000-0000-000000000000")() is None
    assert caplog.records == []


@pytest.mark.gpu
def test_the_gpu_of_a_process_is_read():
    import torch

    from virnucpro.runtime.devices import gpu_uuid

    device = torch.device("cuda", 0)
    held = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    reading = open_gpu(gpu_uuid(device))()
    assert reading.memory_bytes > len(held)
    assert reading.memory_total_bytes == pytest.approx(
        torch.cuda.get_device_properties(device).total_memory, rel=0.1
    )
    assert 10 < reading.temperature_celsius < 110
    assert reading.power_watts > 10
    assert 0 <= reading.utilization_percent <= 100


def test_a_sample_survives_json():
    sample = take_sample(PassStatus("toy"), Place(), GpuReading(97, 1, 2, 700.1, 61))
    assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample

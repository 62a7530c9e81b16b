"""What a monitor publishes and records, in one process and in several."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.samples import PATIENCE_S, do_pass, make_sample, wait_for
from virnucpro.runtime.monitoring import Monitor, PassStatus, Place, RunState
from virnucpro.runtime.monitoring.judge import Limits

REPOSITORY = Path(__file__).resolve().parents[3]


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    assert caplog.messages == ["/dev/full: cannot be written (No space left on device)"]
    assert monitor.summary()["toy embeddings"][0]["batch_fill"] == 1.0


def test_a_store_that_is_gone_does_not_end_the_run(tmp_path: Path):
    torch_distributed = pytest.importorskip("torch.distributed")

    class Gone(torch_distributed.HashStore):
        def set(self, key, value):
            raise torch_distributed.DistStoreError("connection reset by peer")

    with Monitor(tmp_path / "metrics.jsonl", store=Gone()) as monitor:
        do_pass(monitor)
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["outcome"] == "finished"


def test_what_others_put_into_the_store_ends_nothing(tmp_path: Path):
    from torch.distributed import HashStore

    class Shared(HashStore):
        """Another process's texts appear in it before each answer."""

        def multi_get(self, keys):
            answers = super().multi_get(keys)
            return [*answers[:1], *(next(strange) for _ in answers[1:])]

    own = json.dumps(make_sample(50, rank=1).to_json())
    another_pass = json.dumps(make_sample(50, rank=1, name="x").to_json())
    another_rank = json.dumps(make_sample(50, rank=2).to_json())
    texts = (b"\xff", '["\x1b"]', "7", "[" * 100_000, another_pass, another_rank, own)
    strange = itertools.chain(texts, itertools.repeat(own))
    store = Shared()
    with Monitor(tmp_path / "metrics.jsonl", num_processes=2, store=store) as monitor:
        status = PassStatus("toy embeddings", 30, 300, 100)
        monitor.begin_pass(status)
        store.set(monitor._keys[1], "anything")
        for _ in texts:
            monitor.publish()
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert {line["rank"] for line in lines if line["kind"] == "sample"} == {0, 1}
    assert list(monitor.summary()) == ["toy embeddings"]


@pytest.mark.slow
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
        named = f"process 1 (cpu on {os.uname().nodename}, pid {stopped.pid}) has finished no batch"
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

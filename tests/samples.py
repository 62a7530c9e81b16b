"""Samples of processes, passes that only count, and metrics files, for tests of watching a run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from virnucpro.runtime.monitoring import Monitor, PassStatus, RunState, Sample
from virnucpro.runtime.monitoring.gpu import GpuReading
from virnucpro.runtime.monitoring.history import History

PATIENCE_S = 60.0
LOAD_S = 10.0
H200 = "NVIDIA H200"
GPU = GpuReading(97, 84 << 30, 141 << 30, 690.3, 61)


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
        name="toy embeddings",
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


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def watch_all(num_processes: int, **values) -> list[Sample]:
    return [
        make_sample(at, rank=rank, speed=1_000 + rank, **values)
        for rank in range(num_processes)
        for at in range(0, 101, 5)
    ]


def write_run(
    directory: Path, *samples: Sample, num_processes: int = 1, outcome: str | None = None
) -> RunState:
    """Write the metrics of a run that began just now and went by in a moment; return its state."""
    path = directory / "metrics.jsonl"
    shift = time.time() - max((sample.time for sample in samples), default=1_000)
    lines = [{"kind": "start", "time": shift + 1_000, "num_processes": num_processes}]
    for sample in sorted(samples, key=lambda sample: sample.time):
        moved = replace(sample, time=shift + sample.time)
        lines.append({"kind": "sample"} | moved.to_json())
    if outcome is not None:
        lines.append({"kind": "end", "time": time.time(), "outcome": outcome, "passes": {}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_state(path)


def read_state(path: Path) -> RunState:
    state = RunState(path)
    for _ in state.read():
        pass
    return state

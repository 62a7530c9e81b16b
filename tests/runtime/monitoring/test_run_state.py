"""How a run is read back from its metrics file."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.samples import do_pass, make_sample, read_state
from virnucpro.runtime.monitoring import Monitor, RunState, TrainingStatus


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


def test_a_training_is_read_back(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    state = RunState(path)
    first = TrainingStatus(10, 40, 0.25, 0.69)
    for training in (first, replace(first, step=20, share_done=0.5, valid=0.6, auroc=0.75)):
        with Monitor(path) as monitor:
            monitor.tell_training(training)
            list(state.read())
            assert state.training == training
            assert state.to_json()["training"] == asdict(training)
    with path.open("a") as file:
        file.write('{"time": 1.0, "kind": "training", "step": "many"}\n')
    assert [now.training for now in state.read()] == [training]


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


def test_lines_that_are_removed_again_do_not_count(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with Monitor(path) as monitor:
        do_pass(monitor)
    before, state = path.read_bytes(), read_state(path)
    with Monitor(path):
        assert [now.outcome for now in state.read()] == [None]
    path.write_bytes(before)
    assert [now.outcome for now in state.read()][-1] == "finished"


def test_an_earlier_run_may_be_passed_over(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with Monitor(path) as monitor:
        do_pass(monitor)
    state = RunState(path, since=time.time())
    assert list(state.read()) == []
    with Monitor(path):
        assert [now.outcome for now in state.read()] == [None]


@pytest.mark.parametrize(
    "values",
    [
        {"loop_seconds": "x"},
        {"cost": None},
        {"rank": True},
        {"data_seconds": 10**400},
        {"num_rows": float("nan")},
        {"load_seconds": float("inf")},
        {"tokens_per_second": [1]},
        {"host": 7},
        {"state": None},
        {"pass_name": {}},
        {"gpu": "x"},
        {"gpu": {"utilization_percent": "x"}},
        {"time": "x"},
    ],
)
def test_a_sample_with_a_value_of_another_kind_is_passed_over(tmp_path: Path, values):
    lines = [
        {"time": 5.0, "kind": "start", "num_processes": "x"},
        {"time": 5.0, "kind": "start", "num_processes": 1},
        {"kind": "sample"} | make_sample(50).to_json() | values,
        {"time": 7.0, "kind": "warning", "message": 8},
        {"time": 8.0, "kind": "end", "outcome": 9},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("[" * 200_000 + "\n" + "".join(json.dumps(line) + "\n" for line in lines))
    state = read_state(path)
    assert (state.num_processes, state.history.processes) == (1, {})
    assert (state.warnings, state.outcome) == ([], None)


def test_no_text_controls_the_terminal(tmp_path: Path):
    escape = "\x1b]0;TITLE\x07\u202e"
    strange = dict.fromkeys(("host", "device", "state", "pass_name"), escape)
    lines = [
        {"time": 5.0, "kind": "start", "num_processes": 1},
        {"kind": "sample"} | make_sample(50).to_json() | strange,
        {"time": 7.0, "kind": "warning", "message": escape},
        {"time": 8.0, "kind": "end", "outcome": escape},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = read_state(path)
    last = state.history.processes[0].last
    shown = r"\x1b]0;TITLE\x07\u202e"
    assert [last.host, last.device, last.state, last.name] == [shown] * 4
    assert (state.warnings, state.outcome) == ([shown], shown)

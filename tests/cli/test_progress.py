"""A run is followed: in a log by lines, in a terminal by one view."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.samples import GPU, PATIENCE_S, do_pass, make_sample, wait_for, write_run
from virnucpro.cli.progress import follow
from virnucpro.runtime.locks import locked, may_be_held
from virnucpro.runtime.monitoring import Monitor, RunState, Sample


class Lines(list):
    def __call__(self, text: str) -> None:
        self.append(text)


def test_a_log_gets_a_line_now_and_then(tmp_path: Path):
    told = Lines()
    write_run(tmp_path)
    path, shift = tmp_path / "metrics.jsonl", time.time() - 1_000

    def go_on(*samples: Sample) -> None:
        with path.open("a") as file:
            for sample in samples:
                line = {"kind": "sample"} | replace(sample, time=shift + sample.time).to_json()
                file.write(json.dumps(line) + "\n")

    stop = threading.Event()
    arguments = (RunState(path), Console(file=io.StringIO()), stop)
    follower = threading.Thread(
        target=follow, args=arguments, kwargs={"say": told, "seconds": 0.01}, daemon=True
    )
    follower.start()
    go_on(*[make_sample(at, gpu=GPU) for at in (0, 5, 10)])
    for num_lines, at in enumerate((15, 75, 135), start=1):
        go_on(make_sample(at - 1, gpu=GPU), make_sample(at, gpu=GPU))
        wait_for(lambda num_lines=num_lines: len(told) == num_lines)
    go_on(make_sample(200, state="done", num_rows=1_000, gpu=GPU))
    wait_for(lambda: len(told) == 4)
    go_on(make_sample(210, name="other embeddings"))
    stop.set()
    follower.join(10)
    assert told == [
        "toy embeddings: 0.5 % (50 of 1,000 rows), 100 tokens/s, 16 min left",
        "toy embeddings: 6.5 % (650 of 1,000 rows), 100 tokens/s, 15 min left",
        "toy embeddings: 12.5 % (1,250 of 1,000 rows), 100 tokens/s, 14 min left",
        "toy embeddings: 1,000 rows in 3 min 10 s, 100 tokens/s, device busy 98 % of the time, "
        "waiting for data 1 %, GPU 97 %",
    ]


def test_a_terminal_gets_one_view_that_changes(tmp_path: Path):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    path, stop = tmp_path / "metrics.jsonl", threading.Event()
    state = RunState(path)
    told = Lines()
    follower = threading.Thread(
        target=follow, args=(state, terminal, stop), kwargs={"say": told, "seconds": 0.02}
    )
    follower.start()
    with Monitor(path) as monitor:
        do_pass(monitor, "DNA embeddings")
        wait_for(lambda: "DNA embeddings" in terminal.file.getvalue())
        do_pass(monitor, "protein embeddings")
    follower.join(10)
    assert not follower.is_alive()
    assert told == []
    last = terminal.file.getvalue().rpartition("protein embeddings")[2]
    assert "100.0 %  finished" in last
    assert "30 of 30 rows" in last


@pytest.mark.parametrize("is_own", [True, False])
def test_an_error_before_the_first_pass_is_left_to_its_message(tmp_path: Path, is_own: bool):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    path = tmp_path / "metrics.jsonl"
    lines = ({"kind": "start", "num_processes": 1}, {"kind": "end", "outcome": "InputError"})
    path.write_text("".join(json.dumps({"time": time.time()} | line) + "\n" for line in lines))
    follow(RunState(path), terminal, threading.Event(), say=Lines(), is_own=is_own)
    wanted = "no embedding yet: ended by InputError: see run.log"
    assert (wanted in terminal.file.getvalue()) == (not is_own)


def write_killed_run(directory: Path) -> Path:
    """Write the metrics of a run of two hours ago that did not end."""
    write_run(directory, *[make_sample(at) for at in (0, 5, 12)])
    path = directory / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    earlier = [json.dumps(line | {"time": line["time"] - 7_200}) + "\n" for line in lines]
    path.write_text("".join(earlier))
    return path


def follow_until_unlocked(path: Path) -> tuple[list[str], list[str]]:
    """Return what is told of a run while its lock is held, and then."""
    told, lock_path = Lines(), path.with_name(".lock")
    asked = threading.Semaphore(0)

    def may_go_on() -> bool:
        asked.release()
        return may_be_held(lock_path)

    follower = threading.Thread(
        target=follow,
        args=(RunState(path), Console(file=io.StringIO()), threading.Event()),
        kwargs={"say": told, "may_go_on": may_go_on, "seconds": 0.01},
        daemon=True,
    )
    with locked(lock_path):
        follower.start()
        for _ in range(3):
            assert asked.acquire(timeout=PATIENCE_S)
        before = list(told)
    follower.join(PATIENCE_S)
    return before, told[len(before) :]


def test_a_run_that_was_killed_is_left_when_nobody_holds_its_lock(tmp_path: Path):
    (line,), then = follow_until_unlocked(write_killed_run(tmp_path))
    assert line.endswith("1,000 rows), 100 tokens/s, nothing written for 2 h 0 min")
    assert then == [
        "nothing written for 2 h 0 min, and no process holds the lock: the run was probably killed"
    ]


@pytest.mark.parametrize("content", ["", '{"kind": "start", "time": 1'])
def test_a_run_that_was_killed_before_its_first_line_is_left(content: str, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    before, then = follow_until_unlocked(path)
    # It might just begin.
    assert before == []
    assert then == [
        "nothing written yet, and no process holds the lock: the run was probably killed"
    ]


def test_a_run_that_removes_its_directory_has_ended(tmp_path: Path):
    told, directory = Lines(), tmp_path / "out.h5.parts"
    directory.mkdir()
    follower = threading.Thread(
        target=follow,
        args=(RunState(directory / "metrics.jsonl"), Console(file=io.StringIO())),
        kwargs={
            "stop": threading.Event(),
            "say": told,
            "may_go_on": lambda: may_be_held(directory / ".lock"),
            "seconds": 0.01,
        },
        daemon=True,
    )
    with locked(directory / ".lock"), Monitor(directory / "metrics.jsonl") as monitor:
        follower.start()
        do_pass(monitor)
        wait_for(lambda: told)
        # Before the last line of the metrics, which `embed` writes a moment before it does this.
        shutil.rmtree(directory)
    follower.join(PATIENCE_S)
    assert len(told) == 2
    assert told[1] == "the metrics are gone: embed removes them when it has finished"


def test_warnings_of_a_run_that_begins_again_are_told(tmp_path: Path):
    told, path = Lines(), tmp_path / "metrics.jsonl"
    path.write_text("")

    def write(kind: str, **values: object) -> None:
        line = {"kind": kind, "time": time.time(), **values}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    write("start", num_processes=1)
    for number in range(3):
        write("warning", message=f"old {number}")
    follower = threading.Thread(
        target=follow,
        args=(RunState(path), Console(file=io.StringIO()), threading.Event()),
        kwargs={"say": told, "seconds": 0.01},
        daemon=True,
    )
    follower.start()
    wait_for(lambda: len(told) == 3)
    # It was killed, and goes on.
    write("start", num_processes=1)
    write("warning", message="new")
    write("end", outcome="finished")
    follower.join(PATIENCE_S)
    assert told == [*(f"Warning: old {number}" for number in range(3)), "Warning: new", "finished"]


def test_a_run_that_begins_again_is_followed(tmp_path: Path):
    told, stop = Lines(), threading.Event()
    path = write_killed_run(tmp_path)
    killed = path.read_text()
    with Monitor(path):
        resumed = path.read_text().removeprefix(killed)
    path.write_text(killed)

    def may_go_on() -> bool:
        path.write_text(killed + resumed.partition("\n")[0] + "\n")
        stop.set()
        return False

    follow(
        RunState(path), Console(file=io.StringIO()), stop, say=told, may_go_on=may_go_on, seconds=0
    )
    assert len(told) == 1
    assert told[0].endswith("nothing written for 2 h 0 min")

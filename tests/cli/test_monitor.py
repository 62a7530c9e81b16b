"""What people see of a run: in a terminal, in a log, and through `virnucpro monitor`."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.runs import VIRNUCPRO, run, write_reads
from tests.samples import do_pass, make_sample, wait_for
from virnucpro import EmbedConfig, PredictConfig, embed, predict
from virnucpro.cli.main import main
from virnucpro.cli.progress import follow
from virnucpro.cli.run_view import format_seconds, render
from virnucpro.errors import WeightsError
from virnucpro.runtime.monitoring import Monitor, PassStatus, Place, RunState, Sample
from virnucpro.runtime.monitoring.gpu import GpuReading

GPU = GpuReading(97, 84 << 30, 141 << 30, 690.3, 61)


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


def draw(state: RunState, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO())
    console.print(render(state, width, height))
    return console.file.getvalue().splitlines()


def watch_all(num_processes: int, **values) -> list[Sample]:
    return [
        make_sample(at, rank=rank, speed=1_000 + rank, **values)
        for rank in range(num_processes)
        for at in range(0, 101, 5)
    ]


# The view


def test_eight_gpus_of_one_machine_in_eighty_columns(tmp_path: Path):
    state = write_run(tmp_path, *watch_all(8, host="node17", gpu=GPU), num_processes=8)
    head, totals, names, *rows = draw(state)
    assert head.startswith("toy embeddings ━━━")
    assert totals == (
        "72,235 of 1,000 rows  8,028 tokens/s  running 1 min 40 s  8 x H200 on node17"
    )
    assert names.split() == [
        *["#", "state", "rows", "tokens/s", "fill", "busy", "data", "disk", "GPU", "mem", "W", "°C"]
    ]
    assert len(rows) == 8
    assert rows[7].split() == [
        *["7", "embedding", "9,060", "1,007", "100", "%", "98", "%", "1", "%", "10", "%"],
        *["97", "%", "84", "G", "690", "61"],
    ]
    assert max(map(len, (head, totals, names, *rows))) <= 80


def test_the_bar_goes_by_cost_and_the_time_too(tmp_path: Path):
    values = {"total_cost": 400_000, "total_rows": 1_000_000}
    state = write_run(tmp_path, *watch_all(2, **values), num_processes=2)
    assert draw(state)[0].endswith(" 45.0 %  1 min 50 s left")


def test_before_the_first_batch_a_pass_is_loading(tmp_path: Path):
    assert draw(write_run(tmp_path, make_sample(0), make_sample(5)))[0].endswith(" 0.0 %  loading")


def test_of_a_pass_that_is_over_the_mean_utilization_is_shown(tmp_path: Path):
    idle = replace(GPU, utilization_percent=0)
    done = make_sample(105, state="done", loop_seconds=90.0, gpu=idle)
    row = draw(write_run(tmp_path, *watch_all(1, gpu=GPU), done))[3]
    assert row.split()[-6:] == ["97", "%", "84", "G", "690", "61"]


def test_machines_and_devices_are_named_where_they_differ(tmp_path: Path):
    names = {
        0: ("node-with-a-long-name.example.org", "NVIDIA H100 80GB HBM3"),
        1: ("b", "Tesla T4"),
    }
    samples = [
        replace(sample, host=names[sample.rank][0], device=names[sample.rank][1])
        for sample in watch_all(2, gpu=GPU)
    ]
    state = write_run(tmp_path, *samples, num_processes=2)
    assert draw(state, width=120)[1].endswith("1 x H100 80GB H… + 1 x T4 on 2 machines")
    _, totals, columns, first, second = draw(state)
    assert len(totals) <= 80
    assert columns.split()[1:4] == ["host", "device", "state"]
    assert first.startswith("0 node-with-a… H100 80GB H… embedding 9,000")
    assert second.startswith("1 b            T4           embedding")
    # What matters least has made room.
    assert "°C" not in columns
    assert "data" in columns


def test_more_processes_than_lines_show_the_slowest(tmp_path: Path):
    state = write_run(tmp_path, *watch_all(100), num_processes=100)
    lines = draw(state, height=12)
    assert len(lines) <= 11
    shown = [line.split()[0] for line in lines[3:-1]]
    assert shown == ["0", "1", "2", "3", "4", "5"]
    assert lines[-1] == "... and 94 more, 1,006 to 1,099 tokens/s"


def test_a_process_that_is_silent_says_so(tmp_path: Path):
    samples = [s for s in watch_all(2) if s.rank == 0 or s.time <= 1_060]
    rows = draw(write_run(tmp_path, *samples, num_processes=2))[3:]
    assert "silent 40 s" in rows[1]
    assert "embedding" in rows[0]


def test_a_run_that_is_not_heard_of_any_more(tmp_path: Path):
    write_run(tmp_path, *watch_all(1))
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    earlier = [line | {"time": line["time"] - 7_200} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in earlier))
    assert draw(read_state(path))[0].endswith("nothing heard for 2 h 0 min")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (1_799, "29 min"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")],
)
def test_times_are_told_as_people_do(seconds: float, text: str):
    assert format_seconds(seconds) == text


# Following


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


# The command


def test_a_finished_run_is_shown_and_left(tmp_path: Path):
    with Monitor(tmp_path / "metrics.jsonl", Place(device="cpu")) as monitor:
        do_pass(monitor)
    for options in ([], ["--once"]):
        result = CliRunner().invoke(main, ["monitor", str(tmp_path), *options])
        assert result.exit_code == 0
        assert "30" in result.stdout
    assert "100.0 %  finished" in result.stdout
    as_json = CliRunner().invoke(main, ["monitor", str(tmp_path), "--json"])
    found = json.loads(as_json.stdout)
    assert (found["outcome"], found["num_rows"], found["share_done"]) == ("finished", 30, 1.0)
    assert [process["state"] for process in found["processes"]] == ["done"]
    assert found["passes"]["toy embeddings"]["0"]["device"] == "cpu"


def test_a_failed_run_says_what_ended_it(tmp_path: Path):
    write_run(tmp_path, *watch_all(1), outcome="KeyboardInterrupt")
    result = CliRunner().invoke(main, ["monitor", str(tmp_path), "--once"])
    assert "ended by KeyboardInterrupt" in result.stdout


def test_a_directory_without_a_run(tmp_path: Path):
    result = CliRunner().invoke(main, ["monitor", str(tmp_path)])
    assert result.exit_code == 2
    done = run(*VIRNUCPRO, "monitor", tmp_path)
    assert f"{tmp_path}/metrics.jsonl: does not exist; give the output directory of" in done.stderr


def test_a_run_is_followed_without_torch_until_ctrl_c(tmp_path: Path):
    with Monitor(tmp_path / "metrics.jsonl") as monitor:
        monitor.begin_pass(PassStatus("DNA embeddings", 10, 100, 10))
        follower = subprocess.Popen(
            [sys.executable, "-X", "importtime", *VIRNUCPRO[1:], "monitor", tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        monitor.end_pass()
        # The line on the end of the pass has been read.
        first = follower.stdout.readline()
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=60)
    assert first.startswith("DNA embeddings: 0 rows in 0 s")
    assert follower.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in errors.splitlines()}
    assert "virnucpro.runtime.monitoring.run_state" in imported
    assert not imported & {"torch", "accelerate"}


# Real runs


def test_predict_tells_of_its_passes(tmp_path: Path, demo_weights):
    reads = write_reads(tmp_path / "reads.fa", 60)
    config = PredictConfig(inputs=reads, output_dir=tmp_path / "out", device="cpu", **demo_weights)
    predict(config)
    state = read_state(tmp_path / "out/metrics.jsonl")
    assert state.outcome == "finished"
    assert state.history.is_done(1)
    assert state.history.share_done == 1.0
    passes = json.loads((tmp_path / "out/run.json").read_text())["passes"]
    assert list(passes) == ["DNA embeddings", "protein embeddings"]
    for (done,) in passes.values():
        assert done["device"] == "cpu"
        assert done["gpu_utilization_percent"] is None
        assert 0 < done["device_share"] <= 1
        shares = done["device_share"] + done["data_share"]
        assert 0.3 < shares <= 1.01
        assert done["device_seconds"] == pytest.approx(
            done["device_share"] * done["loop_seconds"], rel=0.1, abs=0.01
        )
    table = run(sys.executable, "-m", "tools.benchmark_utilization", tmp_path / "out").stdout
    assert [line.split(" | ")[:2] for line in table.splitlines()[2:4]] == [
        [f"| {name}", "0 (cpu)"] for name in passes
    ]
    # A new run does not go on in the file of the old one.
    predict(replace(config, force=True))
    text = (tmp_path / "out/metrics.jsonl").read_text()
    assert text.count('"start"') == 1
    predict(replace(config, resume=True))
    assert (tmp_path / "out/metrics.jsonl").read_text().startswith(text)


def test_a_failure_at_once_is_in_nobodys_way(tmp_path: Path, demo_weights):
    reads = write_reads(tmp_path / "reads.fa", 20)
    common = {"output_path": tmp_path / "v.h5", "backend": "dnabert-s", "device": "cpu"}
    with pytest.raises(WeightsError):
        embed(EmbedConfig(input=str(reads), weights=str(reads), **common))
    state = read_state(tmp_path / "v.h5.parts/metrics.jsonl")
    assert state.outcome == "WeightsError"
    embed(EmbedConfig(input=str(reads), weights=demo_weights["dna_weights"], **common))
    assert not (tmp_path / "v.h5.parts").exists()

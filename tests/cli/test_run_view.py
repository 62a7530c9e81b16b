"""The view of a run in a terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.samples import GPU, make_sample, read_state, watch_all, write_run
from virnucpro.cli.run_view import render
from virnucpro.errors import format_seconds
from virnucpro.runtime.monitoring import RunState, TrainingStatus


def draw(state: RunState, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO())
    console.print(render(state, width, height))
    return console.file.getvalue().splitlines()


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


def test_a_fine_tuning_shows_its_step_and_its_last_evaluation(tmp_path: Path):
    state = write_run(tmp_path)
    assert draw(state) == ["no embedding yet: running"]
    finished = write_run(tmp_path, outcome="finished")
    assert draw(finished) == ["nothing was left to embed: finished"]
    trainings = (
        TrainingStatus(10, 2000, 0.005, 0.6931),
        TrainingStatus(110, 2000, 0.055, 0.5, 0.4, 0.9),
    )
    for training, text in zip(
        trainings,
        (
            "step 10 of 2,000: loss 0.6931",
            "step 110 of 2,000: loss 0.5000; held out: loss 0.4000, AUROC 0.9000",
        ),
        strict=True,
    ):
        state.training = training
        head, about = draw(state)
        assert head.startswith("fine-tuning ")
        assert head.endswith(f" {100 * training.share_done:.1f} %  running")
        assert about == text


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
    assert draw(read_state(path))[0].endswith("nothing written for 2 h 0 min")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (1_799, "29 min"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")],
)
def test_times_are_told_as_people_do(seconds: float, text: str):
    assert format_seconds(seconds) == text


def test_short_times_may_have_a_decimal():
    times = [format_seconds(seconds, tenths=True) for seconds in (5.54, 59.97, 32_400.4)]
    assert times == ["5.5 s", "1 min 0 s", "9 h 0 min"]

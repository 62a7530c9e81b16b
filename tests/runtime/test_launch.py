"""Several processes give what one gives: through `accelerate launch`, on CPUs."""

from __future__ import annotations

import json
import re

import pytest

from tests.runs import (
    REPOSITORY,
    accelerate_launch,
    configured_launch,
    distinct_rows,
    predict_options,
    read_tables,
    rows_of,
    run,
    write_reads,
)
from virnucpro import EmbedConfig, PredictConfig, embed, predict

pytestmark = pytest.mark.launch

# So few tokens in a batch that there are many; and neither 2 nor 3 processes get equally many.
BUDGETS = {"dna_batch_tokens": 150, "protein_batch_tokens": 150}
BUDGET_OPTIONS = ("--dnabert-batch-size=150", "--esm-batch-size=150")
NUM_BATCHES = ["25", "37"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A directory with an input of many batches, one of one batch, and one of none."""
    directory = tmp_path_factory.mktemp("inputs")
    write_reads(directory / "many.fa", 120)
    (directory / "few.fa").write_text(">one\n" + "ATG" * 15 + "\n")
    (directory / "none.fa").write_text(">empty\n\n>short\nA\n>unknown\n" + "N" * 90 + "\n")
    return directory


@pytest.fixture(scope="module")
def one_process(inputs, demo_weights, tmp_path_factory):
    """The results of one process for each input, in a directory of the same name."""
    directory = tmp_path_factory.mktemp("one_process")
    for name in ("many", "few", "none"):
        settings = {"inputs": inputs / f"{name}.fa", "output_dir": directory / name}
        predict(PredictConfig(device="cpu", **settings, **BUDGETS, **demo_weights))
    return directory


def assert_same_results(found, wanted, num_processes: int) -> None:
    assert read_tables(found) == read_tables(wanted)
    for alphabet in ("dna", "protein"):
        # Every row in one part only, and none too many.
        assert sorted(rows_of(found, alphabet)) == distinct_rows(found, alphabet)
    run_json = json.loads((found / "run.json").read_text())
    assert run_json["num_processes"] == num_processes
    assert [len(processes) for processes in run_json["passes"].values()] == [num_processes] * 2


def assert_all_were_watched(directory, num_processes: int) -> None:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["num_processes"]) == ("start", num_processes)
    for name, processes in json.loads((directory / "run.json").read_text())["passes"].items():
        ended = [
            line for line in lines if (line.get("pass_name"), line.get("state")) == (name, "done")
        ]
        assert [line["rank"] for line in ended] == list(range(num_processes))
        assert sum(line["num_rows"] for line in ended) == ended[0]["total_rows"]
        assert sum(line["cost"] for line in ended) == ended[0]["total_cost"]
        assert [process["rank"] for process in processes] == list(range(num_processes))
    assert lines[-1]["outcome"] == "finished"


def batch_counts(directory) -> list[str]:
    """Return what the log says of the numbers of batches of DNA and of proteins."""
    return re.findall(r"(\d+) batch", (directory / "run.log").read_text())


def test_two_processes_from_a_checkout(inputs, demo_weights, one_process, tmp_path):
    launch = configured_launch("multi_gpu", "--num_processes=2")
    command = ["virnucpro", "predict", inputs / "many.fa", "-o", tmp_path / "out"]
    done = run(*launch, *command, *predict_options(demo_weights), *BUDGET_OPTIONS)
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "out", one_process / "many", num_processes=2)
    assert batch_counts(tmp_path / "out") == NUM_BATCHES
    assert_all_were_watched(tmp_path / "out", num_processes=2)
    # The main process alone tells the news.
    assert done.stdout.count("results: ") == 1


def test_processes_with_workers_from_anywhere(inputs, demo_weights, one_process, tmp_path):
    command = ["-m", "virnucpro", "predict", inputs / "many.fa", "-o", "out"]
    done = run(
        *configured_launch("cpu"),
        *command,
        # The option is ours and not the launcher's, which has one of nearly the same name.
        "--num-processes=2",
        *predict_options(demo_weights),
        *BUDGET_OPTIONS,
        "--dataloader-workers=1",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert_same_results(tmp_path / "out", one_process / "many", num_processes=2)
    assert batch_counts(tmp_path / "out") == NUM_BATCHES


def test_runs_with_less_work_than_processes(
    inputs, demo_weights, one_process, tmp_path, monkeypatch
):
    runs = [
        {"inputs": [str(inputs / f"{name}.fa")], "output_dir": str(tmp_path / name)}
        | {"device": "cpu"}
        | BUDGETS
        | demo_weights
        for name in ("few", "none", "many")
    ]
    vectors = {
        "input": str(inputs / "many.fa"),
        "backend": "dnabert-s",
        "weights": demo_weights["dna_weights"],
        "batch_tokens": 300,
        "device": "cpu",
    }
    runs.append(vectors | {"output_path": str(tmp_path / "launched.h5")})
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{REPOSITORY}/backends")
    done = run(*accelerate_launch(3), "tests/launched_runs.py", tmp_path / "runs.json")
    assert done.returncode == 0, done.stderr
    for name in ("few", "none", "many"):
        assert_same_results(tmp_path / name, one_process / name, num_processes=3)
    assert batch_counts(tmp_path / "few") == ["1", "1"]
    # Every process is told the result.
    assert [done.stdout.count(f"<{count} records>") for count in (1, 3, 120)] == [3, 3, 3]
    embed(EmbedConfig(**vectors, output_path=tmp_path / "single.h5"))
    assert (tmp_path / "launched.h5").read_bytes() == (tmp_path / "single.h5").read_bytes()


def test_an_error_ends_the_launch_and_is_told_once(demo_weights, tmp_path):
    (tmp_path / "broken.fa").write_text(">a\nACGT\n>b\nAC!T\n")
    command = ["virnucpro", "predict", tmp_path / "broken.fa", "-o", tmp_path / "out"]
    done = run(*accelerate_launch(2), *command, *predict_options(demo_weights))
    assert done.returncode != 0
    assert done.stderr.count("position 3, which is not a nucleotide letter") == 1
    assert "This is a bug" not in done.stderr

"""`virnucpro monitor`, and what real runs leave for it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.runs import VIRNUCPRO, run, write_reads
from tests.samples import do_pass, read_state, watch_all, write_run
from virnucpro import EmbedConfig, PredictConfig, embed, predict
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.main import main
from virnucpro.errors import WeightsError
from virnucpro.runtime.monitoring import Monitor, PassStatus, Place


def test_a_finished_run_is_shown_and_left(tmp_path: Path):
    with Monitor(tmp_path / "metrics.jsonl", Place(device="cpu")) as monitor:
        do_pass(monitor)
    for options in ([], ["--once"]):
        result = CliRunner().invoke(main, ["monitor", str(tmp_path), *options])
        assert result.exit_code == 0
        assert "30" in result.stdout
        assert "finished\n" in result.stdout
    assert "100.0 %  finished" in result.stdout
    as_json = CliRunner().invoke(main, ["monitor", str(tmp_path), "--json"])
    found = json.loads(as_json.stdout)
    assert (found["outcome"], found["num_rows"], found["share_done"]) == ("finished", 30, 1.0)
    assert [process["state"] for process in found["processes"]] == ["done"]
    assert found["passes"]["toy embeddings"]["0"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        ("KeyboardInterrupt", "interrupted (Ctrl-C)"),
        ("OutputError", "ended by OutputError: see run.log"),
    ],
)
def test_a_run_says_what_ended_it(tmp_path: Path, outcome: str, shown: str):
    write_run(tmp_path, *watch_all(1), outcome=outcome)
    for options in ([], ["--once"]):
        result = CliRunner().invoke(main, ["monitor", str(tmp_path), *options])
        assert shown in result.stdout
    assert "  ran 1" in result.stdout


@pytest.mark.slow
def test_a_directory_without_a_run(tmp_path: Path):
    result = CliRunner().invoke(main, ["monitor", str(tmp_path)])
    assert result.exit_code == 2
    done = run(*VIRNUCPRO, "monitor", tmp_path)
    assert f"{tmp_path}/metrics.jsonl: does not exist; give the output directory of" in done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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
    common = {"output_path": tmp_path / "new/v.h5", "backend": "dnabert-s", "device": "cpu"}
    with pytest.raises(WeightsError):
        embed(EmbedConfig(input=str(reads), weights=str(reads), **common))
    assert not (tmp_path / "new").exists()
    embed(EmbedConfig(input=str(reads), weights=demo_weights["dna_weights"], **common))
    assert not (tmp_path / "new/v.h5.parts").exists()
    config = PredictConfig(inputs=reads, output_dir=tmp_path / "out", device="cpu", **demo_weights)
    with pytest.raises(WeightsError):
        predict(replace(config, dna_weights=str(reads)))
    assert read_state(tmp_path / "out/metrics.jsonl").outcome == "WeightsError"
    assert not RunDirectory(tmp_path / "out", "reads").is_used()

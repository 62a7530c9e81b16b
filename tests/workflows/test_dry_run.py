from __future__ import annotations

import dataclasses
import json
import logging
import os
import re

import pytest
from click.testing import CliRunner

from tests.runs import REPOSITORY
from tools.make_classifier_weights import make_classifier
from virnucpro import PredictConfig, predict
from virnucpro.backend.interface import Weights
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.main import main
from virnucpro.embedding.budgets import BudgetKey, store_budget
from virnucpro.embedding.estimates import estimate_bytes, measure_weights, warn_of_slow_cpu
from virnucpro.embedding.jobs import make_frame_jobs
from virnucpro.embedding.models import open_frame_models
from virnucpro.errors import ClassifierError
from virnucpro.runtime.run import open_run
from virnucpro.sequences.frame_store import open_frame_store
from virnucpro.workflows.dry_run import estimate_run

pytestmark = pytest.mark.slow

EXAMPLE = str(REPOSITORY / "examples/example.fasta")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Measure speeds for a moment: the figures need not be good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virnucpro.embedding.estimates._MIN_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of the example with the small model."""
    config = PredictConfig(
        inputs=EXAMPLE, model_type="mini", device="cpu", output_dir=tmp_path_factory.mktemp("r")
    )
    return config, predict(config)


@pytest.fixture(scope="module")
def estimated(done):
    """An estimate of the same run."""
    return estimate_run(done[0])


def test_an_estimate_counts_what_a_run_embeds(done, estimated):
    _, result = done
    found = estimated
    assert found.num_records == result.num_records
    assert found.num_rows == result.num_frames
    written = json.loads(result.directory.run_json.read_text())
    num_rows = [processes[0]["num_rows"] for processes in written["passes"].values()]
    assert [one.num_distinct for one in found.passes] == num_rows
    assert found.seconds > sum(one.seconds for one in found.passes) > 0
    files = [path for path in result.directory.path.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    assert 0.3 * on_disk < found.disk_bytes < 3 * on_disk


def test_the_command_prints_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    options = ["-m", "mini", "--device", "cpu", "--num-processes", "2"]
    result = CliRunner().invoke(main, ["predict", EXAMPLE, "--dry-run", *options])
    assert result.exit_code == 0
    assert "9 records, 40 chunks, 80 stretches" in result.stdout
    assert "processes    2, each on cpu" in result.stdout
    assert "a run without" not in result.stdout
    assert not list(tmp_path.iterdir())


def test_an_empty_input_and_a_share_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "empty.fa").touch()
    words = ["predict", tmp_path / "empty.fa", "--dry-run", "--allow-empty", "--shard=1/2"]
    output = tmp_path / "the runs of this week"
    result = CliRunner().invoke(
        main, [*map(str, words), "-m", "mini", "--device", "cpu", "-o", str(output)]
    )
    # A terminal breaks what is too long, and then it can still be copied.
    assert f"MB in {output}\n" in result.stdout
    assert result.stdout.startswith("input        0 records, 0 chunks, 0 stretches\n")
    assert result.stdout.endswith("\nThese figures are for a run without --shard\n")


def test_a_screen_that_cannot_be_used_is_found(done):
    with pytest.raises(ClassifierError, match=r"none\.pth: no such classifier"):
        estimate_run(dataclasses.replace(done[0], screen="none.pth"))


def test_a_speed_that_profile_stored_is_used(done, estimated, tmp_path, monkeypatch):
    monkeypatch.setenv("VIRNUCPRO_BUDGETS", str(tmp_path / "budgets.json"))
    config, _ = done
    plain = estimated.passes[1]
    dim = (plain.disk_bytes // plain.num_distinct - 8) // 4
    store_budget(BudgetKey("cpu", "esm2", dim, "fp32", "auto"), 512, 10.0)
    found = estimate_run(config, num_processes=2).passes[1]
    assert (found.tokens_per_s, found.speed_source) == (10.0, "virnucpro profile")
    assert found.seconds == pytest.approx(found.num_tokens / 10.0 / 2, rel=0.01)
    # The figures are for a run without --shard, as the command says.
    share = estimate_run(dataclasses.replace(config, shard="1/4"), num_processes=2).passes[1]
    assert share.seconds == pytest.approx(found.seconds, rel=0.01)


def test_large_models_are_estimated_without_their_weights(tmp_path):
    classifier = tmp_path / "500_model.safetensors"
    make_classifier(classifier, 768, 2560, 500)
    found = estimate_run(PredictConfig(inputs=EXAMPLE, model_path=classifier, device="cpu"))
    dna, protein = found.passes
    assert protein.speed_source == "from the size of the model"
    assert protein.num_tokens > 1_000
    assert 20 < dna.tokens_per_s / protein.tokens_per_s < 30  # as their numbers of parameters
    on_h100 = protein.num_tokens / 108_830 + dna.num_tokens / 2_021_900
    assert found.card_seconds["H100 or H200"] == pytest.approx(on_h100)
    assert found.card_seconds["A100"] == pytest.approx(on_h100 * 989 / 312)
    assert 11e9 < protein.device_bytes < 13e9
    assert found.host_bytes > 11e9


def test_memory_is_about_what_was_measured_on_an_h100():
    """The figures of docs/notes/performance.md, in GiB."""
    assert estimate_bytes(2_839_005_634, 2560, 32_768, "bf16") / 2**30 == pytest.approx(7.5, abs=1)
    assert estimate_bytes(117_068_544, 768, 32_768, "bf16") / 2**30 == pytest.approx(0.9, abs=0.2)


def test_a_large_model_without_a_gpu_is_warned_of(done, tmp_path, monkeypatch, caplog):
    config, result = done
    # As large as ESM-2 3B, but without content.
    with (tmp_path / "model.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 4 * 2_839_005_634)
    assert measure_weights(str(tmp_path)).num_parameters == 2_839_005_634
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    store = open_frame_store(result.directory.frame_store_dir)
    config = dataclasses.replace(config, device="auto")
    with open_run(config) as run, caplog.at_level(logging.WARNING):
        models = open_frame_models(run, config)
        _, job = make_frame_jobs(config, RunDirectory(tmp_path, ""), store, models, run.precision)
        warn_of_slow_cpu(run, [job])
        assert "no GPU" not in caplog.text
        large = Weights(str(tmp_path), tmp_path, job.model.weights.identity, 2560)
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, weights=large))
        warn_of_slow_cpu(run, [job, job, job, job])
        # A share of a quarter of the batches takes a quarter of the time.
        warn_of_slow_cpu(run, [dataclasses.replace(job, shard=(1, 4))] * 8)
    whole, share = (float(hours) for hours in re.findall(r"no GPU .* ([\d.]+) hours", caplog.text))
    assert share == pytest.approx(whole / 2, abs=0.06)

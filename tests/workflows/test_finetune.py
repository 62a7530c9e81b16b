"""`virnucpro train --finetune`, with small random encoders, as users run it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.runs import VIRNUCPRO, read_known_report, read_table, run
from virnucpro import PredictConfig, TrainConfig, predict, train
from virnucpro.cli.main import main
from virnucpro.errors import ClassifierError, IdentityMismatchError, UsageError
from virnucpro.scoring.classifier import ChunkClassifier
from virnucpro.scoring.classifier_files import load_classifier

pytestmark = pytest.mark.slow

CHUNK_BP = 120


def write_genomes(path: Path, gc: float, seed: int) -> Path:
    generator = random.Random(seed)
    weights = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
    with path.open("w") as file:
        for number in range(24):
            sequence = "".join(generator.choices("ACGT", weights, k=600))
            file.write(f">{path.stem}_{number}\n{sequence}\n")
    return path


@pytest.fixture(scope="module", autouse=True)
def _without_figures() -> Iterator[None]:
    """Draw nothing: tests of training in general do, and it takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virnucpro.reports.figures.can_draw", lambda: False)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory, demo_weights) -> dict[str, object]:
    """The settings of a small fine-tuning, but for its output and what it trains."""
    directory = tmp_path_factory.mktemp("genomes")
    viral = write_genomes(directory / "phages.fa", 0.35, 1)
    other = write_genomes(directory / "bacteria.fa", 0.6, 2)
    weights = {name: value for name, value in demo_weights.items() if name != "model_path"}
    return weights | {
        "viral": (str(viral),),
        "other": (str(other),),
        "chunk_length_bp": CHUNK_BP,
        "frame_rule": "stretches:2:10",
        "test_share": 0.2,
        "device": "cpu",
        "steps": 20,
        "evaluate_steps": 10,
        "step_chunks": 24,
        "micro_batch_tokens": 400,
    }


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, settings) -> Path:
    """A classifier with adapters in both encoders."""
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    train(TrainConfig(**settings, output_path=path, finetune="both", lora_rank=4))
    return path


def predict_with(settings, path: Path, output_dir: Path, *kinds: str) -> None:
    weights = {name: settings[name] for name in settings if name.endswith(("backend", "weights"))}
    predict(
        PredictConfig(
            inputs=tuple(str(name) for kind in kinds for name in settings[kind]),
            output_dir=output_dir,
            model_type="custom",
            model_path=path,
            chunk_length_bp=CHUNK_BP,
            device="cpu",
            **weights,
        )
    )


def test_the_file_holds_adapters_and_predict_merges_them(tuned, settings, tmp_path):
    classifier = load_classifier(tuned)
    assert set(classifier.changes) == {"dna", "protein"}
    assert classifier.metadata is not None
    assert classifier.metadata.finetuned == {
        "encoders": ["dna", "protein"],
        "rank": 4,
        "targets": "all",
    }
    for name in ("tuned", "again"):
        predict_with(settings, tuned, tmp_path / name, "viral")
    records = read_table(tmp_path / "tuned" / "records.tsv")
    assert len(records) == 24
    assert records == read_table(tmp_path / "again" / "records.tsv")
    about = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert "changes_identity" in json.dumps(about)


def test_the_report_has_the_curve_of_the_steps(tuned):
    report = read_known_report(tuned.with_name("tuned_training"))
    assert [one["step"] for one in report["losses"]] == [10, 20]
    assert all(0 <= one["auroc"] <= 1 for one in report["losses"])
    metrics = (tuned.with_name("tuned_training") / "metrics.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, metrics) if line["kind"] == "training"]
    # Before and after each evaluation.
    assert [line["step"] for line in told] == [10, 10, 20, 20]
    first, last = (one["auroc"] for one in report["losses"])
    assert [line["auroc"] for line in told] == [None, first, first, last]
    assert told[-1]["loss"] == report["losses"][-1]["train"]
    page = (tuned.with_name("tuned_training") / "report.html").read_text()
    assert f"2 evaluations; step {10 * report['best_epoch']} was kept" in page


def test_composition_is_learned_from_open_frames(settings, demo_weights, tmp_path):
    path = tmp_path / "all.safetensors"
    more = {"steps": 40, "max_mutation_rate": 0.0, "frame_rule": "open"}
    config = TrainConfig(
        **settings | more, output_path=path, finetune="protein", finetune_all=True, seed=3
    )
    with pytest.raises(ClassifierError, match="scores single frames; give a teacher"):
        train(replace(config, teacher=Path(demo_weights["model_path"])))
    train(replace(config, resume=True))
    report = read_known_report(tmp_path / "all_training")
    assert report["losses"][-1]["auroc"] > 0.95
    classifier = load_classifier(path)
    assert isinstance(classifier, ChunkClassifier)
    assert str(classifier.rule) == "open"
    assert set(classifier.changes) == {"protein"}
    # All weights of the encoder, and not only matrices.
    assert any(name.endswith("norm.bias") for name in classifier.changes["protein"])
    predict_with(settings, path, tmp_path / "run", "viral", "other")
    rows = read_table(tmp_path / "run" / "records.tsv")
    viral, others = (
        [
            float(row["score"])
            for row in rows
            if row["record_id"].startswith(name) and row["call"] != "none"
        ]
        for name in ("phages", "bacteria")
    )
    assert len(viral) + len(others) > 36
    # The AUROC of the records: how often a viral one has the higher score.
    assert sum(one > other for one in viral for other in others) > 0.9 * len(viral) * len(others)


def list_options(given: dict[str, object]) -> list[str]:
    options = []
    for name, value in given.items():
        words = value if isinstance(value, tuple) else (value,)
        options += [f"--{name.replace('_', '-')}", *map(str, words)]
    return options


@pytest.mark.usefixtures("without_figures")
def test_two_processes_learn_together(settings, tmp_path):
    path = tmp_path / "two.safetensors"
    few = {**settings, "steps": 4, "evaluate_steps": 2, "finetune": "dna", "num_processes": 2}
    run(*VIRNUCPRO, "train", *list_options(few), "-o", path)
    report = read_known_report(tmp_path / "two_training")
    assert [one["step"] for one in report["losses"]] == [2, 4]
    assert set(load_classifier(path).changes) == {"dna"}


def test_a_killed_training_resumes_to_the_same_file(settings, tuned, tmp_path):
    path = tmp_path / "tuned.safetensors"
    options = list_options({**settings, "finetune": "both", "lora_rank": 4})
    command = [*VIRNUCPRO, "train", *options, "-o", str(path)]
    state = tmp_path / "tuned_training" / "checkpoints" / "finetuning" / "state.safetensors"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    more = {"output_path": path, "finetune": "both", "lora_rank": 4, "resume": True}
    train(TrainConfig(**settings | more))
    # One that began anew would end with the same file.
    log = (tmp_path / "tuned_training" / "run.log").read_text()
    assert "the training continues after step " in log
    assert path.read_bytes() == tuned.read_bytes()


def test_a_state_of_other_settings_is_refused(settings, tmp_path):
    path = tmp_path / "one.safetensors"
    few = {**settings, "steps": 2, "evaluate_steps": 1, "output_path": path, "finetune": "protein"}
    train(TrainConfig(**few))
    path.unlink()
    with pytest.raises(IdentityMismatchError, match="other sequences, weights or settings"):
        train(TrainConfig(**few | {"frame_rule": "open", "resume": True}))


@pytest.mark.parametrize("limit", [{"minutes": 1e-4}, {}])
def test_a_training_ends_before_its_last_step(settings, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("virnucpro.training.finetuning._PATIENCE", 1)
    path = tmp_path / "short.safetensors"
    often = {"steps": 5000, "evaluate_steps": 5000 if limit else 1, "step_chunks": 4}
    train(TrainConfig(**settings | often | limit, output_path=path, finetune="protein"))
    report = read_known_report(tmp_path / "short_training")
    losses, best = report["losses"], report["best_epoch"]
    assert losses[-1]["step"] < 5000
    # The time was over, or one evaluation was not better than that before.
    assert len(losses) - best == (0 if limit else 1)
    assert max(losses, key=lambda one: one["auroc"]) == losses[best - 1]
    assert load_classifier(path).changes.keys() == {"protein"}


def test_a_teacher_is_learned_from(settings, tuned, tmp_path):
    path = tmp_path / "student.safetensors"
    few = {"steps": 4, "evaluate_steps": 2, "output_path": path, "finetune": "protein"}
    train(TrainConfig(**settings | few | {"teacher": tuned, "teacher_weight": 0.9}))
    report = read_known_report(tmp_path / "student_training")
    assert len(report["losses"]) == 2


def test_features_without_sequences_cannot_be_finetuned(tmp_path):
    with pytest.raises(UsageError, match="hold no sequences"):
        TrainConfig(merged=("a.pt",), output_path=tmp_path / "a", finetune="dna")


@pytest.mark.parametrize(
    "ignored", [{"finetune_all": True}, {"minutes": 1.0}, {"lora_targets": "qkv"}]
)
def test_settings_of_a_finetuning_need_one(settings, tmp_path, ignored):
    with pytest.raises(UsageError, match="only for a fine-tuning"):
        TrainConfig(**settings | ignored, output_path=tmp_path / "a")


def test_a_teacher_of_other_chunks_is_refused(settings, tuned, tmp_path):
    other = {"chunk_length_bp": 150, "teacher": tuned, "finetune": "dna"}
    with pytest.raises(ClassifierError, match="chunks of 120 bp"):
        train(TrainConfig(**settings | other, output_path=tmp_path / "a"))


def test_layers_that_no_backend_has_are_named(settings, tmp_path):
    options = ["--viral", settings["viral"][0], "--other", settings["other"][0]]
    for name in ("dna_backend", "protein_backend", "dna_weights", "protein_weights"):
        if name in settings:
            options += [f"--{name.replace('_', '-')}", str(settings[name])]
    options += ["-o", str(tmp_path / "a.safetensors"), "--finetune", "protein"]
    result = CliRunner().invoke(main, ["train", *options, "--lora-targets", "nothing"])
    assert result.exit_code == 2
    assert "has no such linear layers, but qkv" in " ".join(result.output.split())

"""`virnucpro train` from sequences to a classifier that `predict` uses, with small random encoders.

Such encoders know nothing, but tell the composition of what they embed, which differs between the
classes here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.runs import VIRNUCPRO, predict_options, read_known_report, read_table, rows_of, run
from tools.make_demo_weights import make_demo_weights
from virnucpro import PredictConfig, TrainConfig, TrainResult, predict, train
from virnucpro.cli.main import main
from virnucpro.errors import ClassifierError, InputError, OutputExistsError, UsageError
from virnucpro.scoring.classifier_files import load_classifier

pytestmark = pytest.mark.slow

CHUNK_BP = 90
FILES = ("phages.fa", "bacteria.fa", "fungi.fa")


def write_genomes(path: Path, num_records: int, gc: float, seed: int) -> Path:
    generator = random.Random(seed)
    weights = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
    with path.open("w") as file:
        for number in range(num_records):
            length = generator.randint(200, 1500)
            sequence = "".join(generator.choices("ACGT", weights, k=length))
            file.write(f">{path.stem}_{number} of a species\n{sequence}\n")
    return path


@pytest.fixture(scope="module")
def genomes(tmp_path_factory) -> Path:
    """A directory with viral and other sequences that differ in composition."""
    directory = tmp_path_factory.mktemp("genomes")
    for name, num_records, gc, seed in zip(
        FILES, (60, 45, 45), (0.35, 0.54, 0.58), range(3), strict=True
    ):
        write_genomes(directory / name, num_records, gc, seed)
    return directory


@pytest.fixture(scope="module")
def weights(demo_weights: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in demo_weights.items() if name != "model_path"}


@pytest.fixture(scope="module")
def configure(genomes: Path, weights) -> Callable[..., TrainConfig]:
    def make(output_path: Path, **settings) -> TrainConfig:
        viral, *other = (str(genomes / name) for name in FILES)
        given = {"viral": viral, "other": tuple(other), "chunk_length_bp": CHUNK_BP, "seed": 1}
        given |= {"test_share": 0.2, "device": "cpu", "frame_rule": "open"} | weights
        return TrainConfig(**given | {"output_path": output_path} | settings)

    return make


@pytest.fixture(scope="module")
def trained(configure, tmp_path_factory) -> tuple[TrainConfig, TrainResult]:
    config = configure(tmp_path_factory.mktemp("trained") / "head.safetensors")
    return config, train(config)


def test_records_that_were_held_out_are_told_apart(trained) -> None:
    _, result = trained
    found = {(section.records, section.subset): section for section in result.sections}
    everything = found["test", "all"]
    assert everything.estimates["auroc"].value > 0.9
    assert everything.estimates["auroc"].low > 0.8
    assert everything.num_viral > 20 < everything.num_others
    # Longer fragments are more certain, and need no new embeddings.
    assert found["test", "5-8 chunks"].estimates["auroc"].value > (
        found["test", "1 chunk"].estimates["auroc"].value
    )
    assert "class phages against all others" in {subset for _, subset in found}
    assert "all viral against class fungi" in {subset for _, subset in found}


def test_the_calibration_improves_on_the_scores(trained) -> None:
    _, result = trained
    found = {section.records: section for section in result.sections if section.subset == "all"}
    after, before = found["test"], found["test, score taken as probability"]
    assert after.estimates["brier"].value < before.estimates["brier"].value
    assert after.estimates["calibration_error"].value < 0.15


def test_records_of_both_kinds_are_told_once_and_reported(
    configure, genomes, tmp_path, caplog
) -> None:
    copied = (genomes / "phages.fa").read_text().replace(">phages", ">contig")
    (tmp_path / "copy.fa").write_text(copied)
    other = (str(genomes / "bacteria.fa"), str(tmp_path / "copy.fa"))
    config = configure(tmp_path / "head.safetensors", other=other, epochs=1)
    train(config)
    told = "viral chunks have the DNA of other sequences, too"
    assert caplog.text.count(told) == 1
    assert told in read_known_report(config.work_dir)["warnings"][0]


def test_scores_that_tell_nothing_give_no_calibration(configure, tmp_path: Path, caplog) -> None:
    """With one, the number of chunks alone would decide what is called viral."""
    generator = random.Random(0)
    # Of three groups, the smallest is the split valid. Its two kinds have changed places here.
    for name, contents in (("viral.fa", (0.35, 0.35, 0.6)), ("other.fa", (0.6, 0.6, 0.35))):
        with (tmp_path / name).open("w") as file:
            for gc, length in zip(contents, (20_000, 6_000, 2_000), strict=True):
                weights = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
                sequence = "".join(generator.choices("ACGT", weights, k=length))
                file.write(f">{name}_{length}\n{sequence}\n")
    kinds = {"viral": str(tmp_path / "viral.fa"), "other": (str(tmp_path / "other.fa"),)}
    shares = {"valid_share": 0.05, "test_share": 0.05, "frame_rule": "stretches:2:5"}
    config = configure(tmp_path / "head.safetensors", **kinds, **shares)
    result = train(config)
    assert load_classifier(config.output_path).calibration is None
    assert np.isnan(result.sections[0].estimates["brier"].value)
    assert result.sections[0].estimates["auroc"].value > 0.9
    assert "so the classifier has no calibration" in caplog.text
    assert "no calibration" in read_known_report(config.work_dir)["warnings"][-1]


def test_the_report_is_there_in_every_form(trained) -> None:
    config, result = trained
    assert result.report_dir == config.output_path.with_name("head_training")
    rows = read_table(config.work_dir / "report.tsv")
    assert {row["records"] for row in rows} == {"test", "test, score taken as probability"}
    assert {row["resampled"] for row in rows} == {"records"}
    assert (config.work_dir / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (config.work_dir / "report.svg").read_text()
    page = (config.work_dir / "report.html").read_text()
    assert "data:image/svg+xml" in page
    assert "The records of the split test were cut into fragments of 1 to 16 chunks" in page
    report = read_known_report(config.work_dir)
    assert len(report["losses"]) >= report["best_epoch"] >= 1
    assert (
        min(loss["valid"] for loss in report["losses"])
        == (report["losses"][report["best_epoch"] - 1]["valid"])
    )
    phages = report["classes"][0]
    assert (phages["class"], phages["is_viral"], phages["num_records"]) == ("phages", True, 60)
    held = sum(phages[split]["num_records"] for split in ("train", "valid", "test"))
    assert held + phages["num_records_without_frames"] == 60
    num_tested = [one["test"]["num_records"] for one in report["classes"]]
    everything = report["sections"][0]
    assert everything["num_viral_resampled"] == num_tested[0]
    assert everything["num_others_resampled"] == num_tested[1] + num_tested[2]


def test_the_classifier_tells_what_it_is_for(trained, genomes: Path) -> None:
    config, _ = trained
    metadata = load_classifier(config.output_path).metadata
    assert (metadata.dna_backend, metadata.chunk_length_bp) == ("dnabert-s", CHUNK_BP)
    assert metadata.dna_weights_identity.startswith("sha256:")
    assert metadata.calibration.slope > 0
    paths = [str(genomes / name) for name in FILES]
    assert [file["path"] for file in metadata.origin["inputs"]] == paths
    assert metadata.origin["precision"] == ["fp32", "fp32"]
    assert metadata.origin["settings"]["seed"] == 1


def test_published_weights_keep_their_name(configure, tmp_path: Path) -> None:
    named = {"dna_weights": "mini", "protein_weights": "mini", "frame_rule": "stretches:1:20"}
    config = configure(tmp_path / "small.safetensors", epochs=1, **named)
    train(config)
    wanted = "--protein-backend esm2 --protein-weights mini, digest of the weights sha256:"
    with pytest.raises(ClassifierError, match=wanted):
        predict(
            PredictConfig(
                inputs=config.viral,
                output_dir=tmp_path / "out",
                model_type="custom",
                model_path=config.output_path,
                chunk_length_bp=CHUNK_BP,
                device="cpu",
            )
        )
    # A teacher is found by this name, too.
    taught = configure(
        tmp_path / "taught.safetensors",
        **named | {"teacher": config.output_path, "finetune": "dna", "steps": 1},
        evaluate_steps=1,
    )
    assert train(taught).model_path.is_file()


def test_predict_uses_it_and_nothing_else_may(trained, genomes, weights, tmp_path) -> None:
    config, _ = trained
    write_genomes(tmp_path / "new.fa", 10, 0.35, seed=9)
    given = {
        "inputs": tmp_path / "new.fa",
        "output_dir": tmp_path / "out",
        "model_type": "custom",
        "model_path": config.output_path,
        "device": "cpu",
        "force": True,
    }
    fitting = PredictConfig(**given, chunk_length_bp=CHUNK_BP, **weights)
    result = predict(replace(fitting, max_fdr=0.1))
    assert result.num_virus >= 8
    rows = read_table(result.directory.records_tsv)
    assert all(float(row["probability"]) > 0.5 for row in rows if row["call"] == "virus")
    with pytest.raises(
        ClassifierError, match="trained on chunks of 90 bp, and the run cuts chunks of"
    ):
        predict(replace(fitting, chunk_length_bp=300))
    others = make_demo_weights(tmp_path / "others", seed=1)
    with pytest.raises(ClassifierError, match="trained on esm2 weights sha256:"):
        predict(replace(fitting, protein_weights=others["protein_weights"]))


def test_an_interrupted_training_goes_on_to_the_same_end(trained, configure, tmp_path) -> None:
    config, _ = trained
    again = configure(tmp_path / "head.safetensors", protein_batch_tokens=2000)
    updates = []

    def interrupt(update) -> None:
        updates.append(update)
        if update.name == "protein embeddings":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, interrupt)
    assert not again.output_path.exists()
    with pytest.raises(OutputExistsError, match="head_training: exists already"):
        train(again)
    names = []
    train(replace(again, resume=True), lambda update: names.append(update.name))
    assert set(names) == {"protein embeddings"}
    assert again.output_path.read_bytes() == config.output_path.read_bytes()
    for name in ("report.tsv", "report.png", "report.svg"):
        assert (again.work_dir / name).read_bytes() == (config.work_dir / name).read_bytes()


def test_only_what_is_used_is_embedded(trained) -> None:
    config, _ = trained
    used = sum(
        one[split]["num_frames"]
        for one in read_known_report(config.work_dir)["classes"]
        for split in ("train", "valid", "test")
    )
    table = config.work_dir / "checkpoints/frames/frame_codes.uint8"
    assert len(rows_of(config.work_dir, "dna")) == used < table.stat().st_size


@pytest.mark.usefixtures("without_figures")
def test_a_group_is_never_on_two_sides(configure, genomes, tmp_path) -> None:
    names = [f"{name[:-3]}_{number}" for name in FILES for number in range(60)]
    # Twenty species, each of which has records in all three files.
    lines = [f"{name}\tspecies {index % 20}\n" for index, name in enumerate(names)]
    (tmp_path / "groups.tsv").write_text("id\tgroup\n" + "".join(lines))
    config = configure(tmp_path / "head.safetensors", groups=tmp_path / "groups.tsv", epochs=1)
    result = train(config)
    everything = result.sections[0]
    assert everything.resampled == "groups"
    assert everything.num_viral_resampled < 20 < everything.num_viral
    for one in read_known_report(config.work_dir)["classes"]:
        groups = [one[split]["num_groups"] for split in ("train", "valid", "test")]
        assert sum(groups) <= 20
        assert all(groups)


def test_a_training_is_refused_before_anything_is_embedded(configure, tmp_path: Path) -> None:
    (tmp_path / "one.fa").write_text(">a\n" + "ATGGCC" * 60 + "\n")
    few = configure(tmp_path / "head.safetensors", viral=str(tmp_path / "one.fa"))
    with pytest.raises(
        UsageError, match=r"has no usable chunk of viral .* Put sequences of one kind into"
    ):
        train(few)
    (tmp_path / "groups.tsv").write_text("id\tgroup\nnobody\tx\n")
    with pytest.raises(InputError, match="none of its 1 id is among the 150 records"):
        train(configure(tmp_path / "b.safetensors", groups=tmp_path / "groups.tsv"))
    assert not list(tmp_path.glob("*_training/checkpoints/dna"))
    (tmp_path / "c.safetensors").write_text("somebody's")
    with pytest.raises(OutputExistsError, match=r"c\.safetensors: exists already"):
        train(configure(tmp_path / "c.safetensors"))


# Stretches


@pytest.fixture(scope="module")
def trained_on_stretches(configure, tmp_path_factory) -> tuple[TrainConfig, TrainResult]:
    path = tmp_path_factory.mktemp("stretches") / "head.safetensors"
    config = configure(path, frame_rule="stretches:2:8")
    return config, train(config)


def test_a_head_over_chunks_is_trained_on_stretches(trained_on_stretches) -> None:
    config, result = trained_on_stretches
    classifier = load_classifier(config.output_path)
    assert str(classifier.rule) == classifier.metadata.frame_rule == "stretches:2:8"
    assert classifier.calibration.slope > 0
    found = {(section.records, section.subset): section for section in result.sections}
    everything = found["test", "all"]
    assert everything.estimates["auroc"].value > 0.9
    before = found["test, score taken as probability", "all"]
    assert everything.estimates["calibration_error"].value < 0.15
    assert everything.estimates["brier"].value < before.estimates["brier"].value + 0.02


def test_predict_reads_what_was_trained_on_stretches(
    trained_on_stretches, weights, tmp_path
) -> None:
    config, _ = trained_on_stretches
    write_genomes(tmp_path / "new.fa", 10, 0.35, seed=9)
    result = predict(
        PredictConfig(
            inputs=str(tmp_path / "new.fa"),
            output_dir=tmp_path / "out",
            model_type="custom",
            model_path=config.output_path,
            device="cpu",
            chunk_length_bp=CHUNK_BP,
            **weights,
        )
    )
    assert (result.num_virus, result.num_none) == (10, 0)


# The command


@pytest.mark.usefixtures("without_figures")
def test_options_of_files_take_several(genomes: Path, weights, tmp_path: Path) -> None:
    options = [*predict_options(weights), "--epochs=1", f"--expected-length={CHUNK_BP}"]
    result = CliRunner().invoke(
        main,
        [
            *("train", "--viral", str(genomes / FILES[0])),
            *("--other", str(genomes / FILES[1]), str(genomes / FILES[2])),
            *("-o", str(tmp_path / "head.safetensors"), *options),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "test: " in result.output
    report = read_known_report(tmp_path / "head_training")
    assert [one["class"] for one in report["classes"]] == ["phages", "bacteria", "fungi"]


def test_sequences_are_read_in_stretches_unless_told_otherwise(tmp_path: Path) -> None:
    files = {"viral": ("a.fa",), "other": ("b.fa",), "output_path": tmp_path / "head.safetensors"}
    assert TrainConfig(**files).frame_rule == "stretches:2:20"
    assert TrainConfig(**files, frame_rule="open").frame_rule == "open"
    merged = TrainConfig(merged=("a.pt",), output_path=tmp_path / "head.safetensors")
    assert merged.frame_rule == "open"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--viral", "a.fa"), "wanted either viral and other sequences"),
        (("--viral", "a.fa", "--other", "a.fa", "--merged", "a.fa"), "or labelled features"),
        (("--merged", "a.fa", "--frames", "stretches"), "are of open frames"),
        (("--viral", "a.fa", "--other", "a.fa", "--frames", "closed"), "wanted open, stretches"),
        (("--viral", "a.fa", "--other", "a.fa", "--test-share", "0.95"), "nothing is left"),
        (("--viral", "a.fa", "--other", "a.fa", "--valid-share", "0"), "wanted a share between"),
        (("--viral", "no.fa"), "'no.fa' does not exist"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.fa").write_text(">a\nACGT\n")
    result = CliRunner().invoke(main, ["train", *options, "-o", "head.safetensors"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.launch
@pytest.mark.usefixtures("without_figures")
def test_two_processes_make_the_same_classifier(trained, genomes, weights, tmp_path) -> None:
    config, _ = trained
    options = [*predict_options(weights), f"-e{CHUNK_BP}", "--seed=1", "--test-share=0.2"]
    options.append("--frames=open")
    files = ["--viral", genomes / FILES[0], "--other", genomes / FILES[1], genomes / FILES[2]]
    command = ["train", *files, "-o", tmp_path / "head.safetensors", *options]
    done = run(*VIRNUCPRO, *command, "--num-processes=2")
    assert done.returncode == 0, done.stderr
    found = np.frombuffer((tmp_path / "head.safetensors").read_bytes(), np.uint8)
    np.testing.assert_array_equal(found, np.frombuffer(config.output_path.read_bytes(), np.uint8))

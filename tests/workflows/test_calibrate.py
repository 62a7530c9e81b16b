"""`virnucpro calibrate`: a labelled run gives a classifier its calibration."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runs import MISSING, change, invoke, read_table, write_reads
from virnucpro import CalibrateConfig, PredictConfig, calibrate, predict
from virnucpro.errors import ClassifierError, InputError, OutputExistsError
from virnucpro.scoring.calibration import fit_calibration
from virnucpro.scoring.classifier_files import load_classifier, read_classifier, save_classifier


@pytest.fixture(scope="module")
def labelled(demo_weights: dict[str, str], tmp_path_factory) -> CalibrateConfig:
    """A run with a classifier that has no calibration, and labels that follow its scores."""
    directory = tmp_path_factory.mktemp("labelled")
    reads = write_reads(directory / "reads.fa", 200)
    predict(PredictConfig(inputs=reads, output_dir=directory / "run", device="cpu", **demo_weights))
    generator = random.Random(0)
    lines = ["id\tlabel\tgroup"]
    for number, row in enumerate(read_table(directory / "run" / "records.tsv")):
        score = 0.5 if row["score"] == "NA" else float(row["score"])
        label = "virus" if score + generator.gauss(0, 0.1) > 0.5 else "others"
        lines.append(f"{row['record_id']}\t{label}\t{label}_{number % 8}")
    (directory / "labels.tsv").write_text("\n".join(lines) + "\n")
    return CalibrateConfig(
        classifier=Path(demo_weights["model_path"]),
        run_dir=directory / "run",
        truth=directory / "labels.tsv",
        output_path=directory / "calibrated.safetensors",
        force=True,
    )


def test_the_fit_is_that_of_the_labelled_records(labelled: CalibrateConfig) -> None:
    result = calibrate(labelled)
    labels = {row["id"]: row["label"] for row in read_table(labelled.truth)}
    rows = [row for row in read_table(labelled.run_dir / "records.tsv") if row["score"] != "NA"]
    wanted = fit_calibration(
        np.array([float(row["score"]) for row in rows]),
        np.array([int(row["num_open_chunks"]) for row in rows]),
        np.array([labels[row["record_id"]] == "virus" for row in rows]),
    )
    assert result.calibration == wanted
    before, after = (load_classifier(path) for path in (labelled.classifier, result.output_path))
    assert after.calibration == wanted
    assert replace(after.metadata, calibration=None, origin=None) == replace(
        before.metadata, origin=None
    )
    made_on = after.metadata.origin["calibrated_on"]
    assert made_on["num_viral"] + made_on["num_others"] == len(rows)
    assert made_on["truth"]["sha256"].startswith("sha256:")
    (section,) = result.sections
    assert (section.records, section.resampled) == ("cross-fitted", "groups")
    value, low, high = section.estimates["calibration_error"]
    assert 0 < low <= value <= high < 0.5


def test_a_published_classifier_learns_what_it_is_for(labelled, tmp_path: Path) -> None:
    """The run says it; afterwards the classifier refuses other models."""
    import torch

    state, metadata, _ = read_classifier(labelled.classifier)
    published = tmp_path / "500_model.pth"
    torch.save(state, published)
    inputs = json.loads((labelled.run_dir / "run.json").read_text())["settings"]
    config = PredictConfig(
        inputs=tuple(inputs["inputs"]),
        output_dir=tmp_path / "run",
        device="cpu",
        model_path=published,
        dna_weights=inputs["dna_weights"],
        protein_weights=inputs["protein_weights"],
    )
    predict(config)
    out = tmp_path / "new" / "calibrated.safetensors"
    result = calibrate(
        replace(labelled, classifier=published, run=tmp_path / "run", output_path=out)
    )
    assert result.calibration == calibrate(labelled).calibration
    found = load_classifier(out).metadata
    for name in ("dna_backend", "protein_backend", "dna_dim", "protein_dim", "chunk_length_bp"):
        assert getattr(found, name) == getattr(metadata, name)
    assert found.dna_weights_identity.startswith("sha256:")
    # The probabilities and the calls are those of the calibration.
    after = predict(replace(config, model_path=out, output_dir=tmp_path / "after", max_fdr=0.2))
    calls = json.loads(after.directory.run_json.read_text())["calls"]
    assert calls["by"] == "probability"
    assert calls["expected_fdr"] <= 0.2
    assert after.num_virus > 0
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    for place, value, message in (
        (("backends", 1), document["backends"][0], r"backends\[1\].alphabet is 'dna', wanted 'pro"),
        (("settings", "chunk_length_bp"), MISSING, "lacks settings.chunk_length_bp; the file was"),
    ):
        (tmp_path / "run" / "run.json").write_text(json.dumps(change(document, place, value)))
        with pytest.raises(InputError, match=message):
            calibrate(
                replace(labelled, classifier=published, run=tmp_path / "run", output_path=out)
            )


def test_cross_fitted_probabilities_know_nothing_of_their_group(labelled, tmp_path) -> None:
    """A group whose labels contradict its scores shows in the error, and so it must."""
    clean = calibrate(labelled).sections[0].estimates["calibration_error"].value
    rows = read_table(labelled.truth)
    path = tmp_path / "labels.tsv"
    path.write_text(
        "id\tlabel\tgroup\n"
        + "".join(
            f"{row['id']}\t{'others' if row['label'] == 'virus' else 'virus'}\tone\n"
            if row["group"].endswith(("_0", "_1", "_2"))
            else f"{row['id']}\t{row['label']}\t{row['group']}\n"
            for row in rows
        )
    )
    odd = calibrate(replace(labelled, truth=path)).sections[0].estimates["calibration_error"].value
    assert odd > 1.5 * clean


def test_scores_that_tell_the_wrong_way_give_no_calibration(labelled, tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    other = {"virus": "others", "others": "virus"}
    rows = read_table(labelled.truth)
    path.write_text("id\tlabel\n" + "".join(f"{r['id']}\t{other[r['label']]}\n" for r in rows))
    with pytest.raises(InputError, match="do not tell its viral records from the others"):
        calibrate(replace(labelled, truth=path, output_path=tmp_path / "new.safetensors"))
    assert not (tmp_path / "new.safetensors").exists()


def test_two_groups_cannot_tell_the_error(labelled, tmp_path: Path, caplog) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text(
        "id\tlabel\tgroup\n"
        + "".join(
            f"{row['id']}\t{row['label']}\t{row['label']}\n" for row in read_table(labelled.truth)
        )
    )
    result = calibrate(replace(labelled, truth=path))
    assert result.sections == []
    assert result.calibration == calibrate(labelled).calibration
    assert "the error of the probabilities is unknown" in caplog.text


@pytest.mark.slow
def test_the_command_prints_the_error_and_the_file(labelled, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = ("--run-dir", labelled.run_dir, "--truth", labelled.truth, "-o", out)
    done = invoke("calibrate", labelled.classifier, *options)
    assert done.returncode == 0, done.stderr
    assert "cross-fitted: " in done.stdout
    assert "  calibration error  0." in done.stdout
    assert done.stdout.endswith(f"classifier: {out}\n")
    # By the former name.
    again = invoke("calibrate", labelled.classifier, "--run", *options[1:])
    assert again.returncode == 2
    assert "exists already; overwrite it with --force" in again.stderr


def test_mistakes_are_explained(labelled: CalibrateConfig, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="exists already"):
        calibrate(replace(labelled, output_path=labelled.run_dir / "records.tsv", force=False))
    state, metadata, _ = read_classifier(labelled.classifier)
    other = tmp_path / "other.safetensors"
    save_classifier(other, state, replace(metadata, origin={"a": 1}))
    with pytest.raises(ClassifierError, match="did not make the run in"):
        calibrate(replace(labelled, classifier=other))
    labels = tmp_path / "labels.tsv"
    labels.write_text("id\tlabel\nread_0\tvirus\nread_1\tvirus\nread_2\tvirus\nread_3\tvirus\n")
    with pytest.raises(InputError, match=r"\d viral and 0 other records of .* wanted both kinds"):
        calibrate(replace(labelled, truth=labels))
    labels.write_text("id\tlabel\nnobody\tvirus\n")
    with pytest.raises(InputError, match=r"0 viral and 0 other records of .* wanted both kinds"):
        calibrate(replace(labelled, truth=labels))

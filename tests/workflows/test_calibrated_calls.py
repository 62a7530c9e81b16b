"""Probabilities in records.tsv, and calls by them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tests.runs import invoke, predict_options, read_table, write_reads
from virnucpro import PredictConfig, PredictResult, predict
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier_files import read_classifier, save_classifier
from virnucpro.scoring.decisions import round_shares
from virnucpro.sequences.fasta import RecordReader

CALIBRATION = Calibration(slope=4.0, slope_growth=0.5, offset=-0.25, most_chunks=20)


@pytest.fixture(scope="module")
def calibrated(demo_weights: dict[str, str], tmp_path_factory) -> dict[str, str]:
    """The demonstration's settings, its classifier with a calibration."""
    path = tmp_path_factory.mktemp("classifier") / "calibrated.safetensors"
    state, metadata, _ = read_classifier(Path(demo_weights["model_path"]))
    save_classifier(path, state, replace(metadata, calibration=CALIBRATION))
    return demo_weights | {"model_path": str(path)}


@pytest.fixture(scope="module")
def finished(calibrated, tmp_path_factory) -> PredictConfig:
    """A run with the calibrated classifier, of which the tests change how it calls."""
    directory = tmp_path_factory.mktemp("run")
    reads = write_reads(directory / "reads.fa", 60)
    config = PredictConfig(
        inputs=reads, output_dir=directory / "out", device="cpu", resume=True, **calibrated
    )
    predict(config)
    return config


def read_probabilities(result: PredictResult) -> np.ndarray:
    rows = read_table(result.directory.records_tsv)
    return np.array([float(row["probability"].replace("NA", "nan")) for row in rows])


def read_rule(result: PredictResult) -> dict:
    return json.loads(result.directory.run_json.read_text())["calls"]


def test_every_called_record_has_a_probability(finished: PredictConfig) -> None:
    result = predict(finished)
    rows = read_table(result.directory.records_tsv)
    assert {row["call"] for row in rows} == {"virus", "others", "none"}
    for row in rows:
        assert (row["probability"] == "NA") == (row["call"] == "none") == (row["score"] == "NA")
    called = [row for row in rows if row["call"] != "none"]
    probability = np.array([float(row["probability"]) for row in called])
    # The printed score gives the printed probability, and that gives the call.
    wanted = CALIBRATION.probabilities(
        np.array([float(row["score"]) for row in called]),
        np.array([int(row["num_open_chunks"]) for row in called]),
    )
    np.testing.assert_array_equal(probability, round_shares(wanted))
    np.testing.assert_array_equal(probability >= 0.5, [row["call"] == "virus" for row in called])
    assert any((float(row["score"]) >= 0.5) != (row["call"] == "virus") for row in called)
    assert {row["confidence"] for row in rows} == {"low", "medium", "-"}
    viral = [1 - float(row["probability"]) for row in called if row["call"] == "virus"]
    assert read_rule(result) == {
        "by": "probability",
        "threshold": 0.5,
        "preset": None,
        "max_fdr": None,
        "viral_share": 0.5,
        "is_share_estimated": False,
        "expected_fdr": pytest.approx(np.mean(viral)),
    }
    made_for = json.loads(result.directory.run_json.read_text())["classifier"]["made_for"]
    assert made_for["calibration"] == asdict(CALIBRATION)
    assert made_for["chunk_length_bp"] == 500


@pytest.mark.parametrize("max_fdr", [0.05, 0.2, 0.45])
def test_calls_keep_the_expected_fdr_within_the_bound(finished, max_fdr) -> None:
    result = predict(replace(finished, max_fdr=max_fdr))
    rule = read_rule(result)
    probability = read_probabilities(result)
    rows = read_table(result.directory.records_tsv)
    is_virus = np.array([row["call"] == "virus" for row in rows])
    assert is_virus.any()
    assert rule["by"] == "probability"
    assert rule["expected_fdr"] == pytest.approx((1 - probability[is_virus]).mean())
    assert rule["expected_fdr"] <= max_fdr
    np.testing.assert_array_equal(is_virus, probability >= rule["threshold"])
    # One more record would be one too many.
    rest = np.sort(probability[~is_virus & ~np.isnan(probability)])[::-1]
    assert (1 - np.append(probability[is_virus], rest[0])).mean() > max_fdr
    viral = [record.id for record in RecordReader(result.directory.viral_fasta, "dna")]
    assert viral == [row["record_id"] for row in rows if row["call"] == "virus"]


def test_a_bound_that_nothing_meets_calls_nothing(finished: PredictConfig) -> None:
    result = predict(replace(finished, max_fdr=1e-9))
    assert result.num_virus == 0
    assert result.num_others > 0
    assert (read_rule(result)["threshold"], read_rule(result)["expected_fdr"]) == (None, None)


def test_fewer_viruses_in_the_input_make_each_less_probable(finished: PredictConfig) -> None:
    usual_result = predict(finished)
    usual = read_probabilities(usual_result)
    result = predict(replace(finished, viral_share=0.1))
    rare = read_probabilities(result)
    odds = rare / (1 - rare)
    np.testing.assert_allclose(9 * odds, usual / (1 - usual), rtol=2e-3)
    assert read_rule(result)["viral_share"] == 0.1
    # The calls change with the probabilities, so no row contradicts itself.
    assert result.num_virus < usual_result.num_virus
    is_virus = [row["call"] == "virus" for row in read_table(result.directory.records_tsv)]
    np.testing.assert_array_equal(is_virus, rare >= 0.5)


def test_presets_keep_their_order(finished: PredictConfig, caplog) -> None:
    def call(**settings: object) -> tuple[set[str], dict]:
        result = predict(replace(finished, **settings))
        rows = read_table(result.directory.records_tsv)
        return {row["record_id"] for row in rows if row["call"] == "virus"}, read_rule(result)

    # The share moves the usual calls below and above the bound of --relaxed.
    for viral_share in (0.05, 0.5, 0.95):
        usual, _ = call(viral_share=viral_share)
        relaxed, relaxed_rule = call(viral_share=viral_share, preset="relaxed")
        conservative, strict_rule = call(viral_share=viral_share, preset="conservative")
        assert conservative <= usual <= relaxed
        assert (relaxed_rule["max_fdr"], strict_rule["max_fdr"]) == (0.2, 0.01)
        assert (strict_rule["expected_fdr"] or 0) <= 0.01
        assert relaxed == usual or relaxed_rule["expected_fdr"] <= 0.2
    assert "--relaxed: bound on the expected false discovery rate 0.2" in caplog.text


def test_doubtful_lists_are_warned_of(finished: PredictConfig, caplog) -> None:
    def warnings(**settings: object) -> list[str]:
        caplog.clear()
        result = predict(replace(finished, **settings))
        found = json.loads(result.directory.run_json.read_text())["warnings"]
        logged = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert set(found) <= set(logged)
        return found

    (many,) = warnings(max_fdr=0.45)
    assert "the expected false discovery rate of the viral records is 0.4" in many
    assert warnings(max_fdr=0.05) == []
    (none,) = warnings(threshold=1.0)
    assert re.search(r"no record is called viral: .* is 0\.\d+, and the threshold is 1$", none)
    (none,) = warnings(max_fdr=1e-9)
    assert "even the record with the highest probability (0.9" in none


def test_the_end_counts_viral_calls_that_rest_on_little(finished: PredictConfig) -> None:
    result = predict(finished)
    # All reads are shorter than a chunk.
    assert result.num_virus_few_chunks == result.num_virus > 0
    log = result.directory.run_log.read_text()
    assert "less sure; for reads, use a classifier for 300 bp (-m 300, or -m mini -e 300)" in log
    assert log.count("60 of 60 records are shorter than a chunk of 500 bp") == len(
        re.findall("find open frames", log)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"max_fdr": 0.05},
        {"viral_share": 0.1},
        {"estimate_viral_share": True},
        {"preset": "relaxed"},
    ],
)
def test_without_a_calibration_a_score_is_no_probability(
    demo_weights, tmp_path: Path, settings
) -> None:
    reads = write_reads(tmp_path / "reads.fa", 10)
    config = PredictConfig(
        inputs=reads, output_dir=tmp_path / "out", device="cpu", **demo_weights, **settings
    )
    with pytest.raises(ClassifierError, match="its score is not a probability"):
        predict(config)
    without = dict.fromkeys(("max_fdr", "preset", "viral_share", "estimate_viral_share"))
    result = predict(replace(config, force=True, **without))
    assert np.isnan(read_probabilities(result)).all()
    assert (read_rule(result)["by"], read_rule(result)["threshold"]) == ("score", 0.5)
    log = result.directory.run_log.read_text()
    assert log.count("so a score is not a probability") == 1


@pytest.mark.slow
def test_presets_have_flags(calibrated, tmp_path: Path) -> None:
    reads = write_reads(tmp_path / "reads.fa", 10)
    command = ["predict", reads, "-o", tmp_path / "out", *predict_options(calibrated)]
    done = invoke(*command, "--conservative")
    assert done.returncode == 0
    settings = json.loads((tmp_path / "out/run.json").read_text())["settings"]
    assert settings["preset"] == "conservative"
    done = invoke(*command, "--relaxed", "--max-fdr=0.2")
    assert done.returncode == 2
    assert "--max-fdr and --relaxed both decide what is called viral" in done.stderr
    done = invoke(*command, "--relaxed", "--conservative")
    assert done.returncode == 2
    assert "--relaxed and --conservative contradict each other" in done.stderr

"""`virnucpro check-precision`, against what two runs of `predict` find."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.runs import predict_options, read_table, write_reads
from virnucpro import PredictConfig, PredictResult, predict
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.cli.check_precision import _describe
from virnucpro.cli.main import main
from virnucpro.sequences.fasta import RecordReader
from virnucpro.workflows.check_precision import EmbeddingDifference, PrecisionCheck


@pytest.fixture
def check(demo_weights, tmp_path, monkeypatch):
    """Run the command, which leaves nothing behind where it and its temporary files are."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(scratch)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def run_check(*args: object) -> Result:
        options = predict_options(demo_weights)
        result = CliRunner().invoke(main, ["check-precision", *options, *map(str, args)])
        assert list(scratch.iterdir()) == []
        return result

    return run_check


@pytest.fixture(scope="module")
def reads(tmp_path_factory) -> Path:
    return write_reads(tmp_path_factory.mktemp("input") / "reads.fa", 40)


@pytest.fixture(scope="module")
def runs(reads, demo_weights, tmp_path_factory) -> dict[str, PredictResult]:
    directory = tmp_path_factory.mktemp("runs")
    return {
        precision: predict(
            PredictConfig(
                inputs=(str(reads),),
                output_dir=directory / precision,
                precision=precision,
                device="cpu",
                **demo_weights,
            )
        )
        for precision in ("fp32", "bf16")
    }


def scores_of(run: PredictResult) -> dict[str, float]:
    """Return the exact score of every record that has one; every read is one chunk."""
    scores = {}
    for row in read_table(run.directory.highest_scores):
        others, virus = float(row["max_score_0"]), float(row["max_score_1"])
        scores[row["Modified_ID"].removesuffix("_chunk_1")] = virus / (virus + others)
    return scores


def printed_scores(run: PredictResult) -> dict[str, float]:
    """Return the scores in records.tsv, which decide the calls."""
    rows = read_table(run.directory.records_tsv)
    return {row["record_id"]: float(row["score"]) for row in rows if row["score"] != "NA"}


def test_it_finds_what_two_runs_of_predict_differ_in(check, reads, runs):
    wanted, found = (scores_of(runs[name]) for name in ("fp32", "bf16"))
    moved = max(wanted, key=lambda name: abs(wanted[name] - found[name]))
    # From the larger of its two scores on records are viral, so that this one flips.
    printed = [printed_scores(runs[name]) for name in ("fp32", "bf16")]
    threshold = max(scores[moved] for scores in printed)
    flips = [
        name
        for name in wanted
        if (printed[0][name] >= threshold) != (printed[1][name] >= threshold)
    ]

    result = check(reads, "--precision=bf16", "--json", "--sample=99", f"--threshold={threshold!r}")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["precision"], document["device"]) == ("bf16", "cpu")
    assert (document["num_records"], document["num_input_records"]) == (40, 40)
    frames, chunks, records = document["scores"]
    assert [frames["level"], chunks["level"], records["level"]] == ["frames", "chunks", "records"]
    assert records["num_scored"] == len(wanted)
    assert frames["num_scored"] == runs["fp32"].num_frames
    assert records["num_flips"] == len(flips)
    assert records["flips"] == [
        {"id": name, "reference_score": wanted[name], "score": found[name]} for name in flips
    ]
    assert moved in flips
    differences = [abs(wanted[name] - found[name]) for name in wanted]
    assert records["largest"] == max(differences)
    assert records["median"] == np.median(differences)


def test_it_compares_the_embeddings_of_two_runs(check, reads, runs):
    document = json.loads(check(reads, "--precision=bf16", "--json").stdout)
    for alphabet, found in zip(("dna", "protein"), document["embeddings"], strict=True):
        parts = [finished_parts(run.directory.parts_dir(alphabet)) for run in runs.values()]
        rows = finished_rows(parts[0])
        reference_NE, checked_NE = (EmbeddingReader(each).gather(rows) for each in parts)
        cosines = [
            np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))
            for a, b in zip(reference_NE.astype(float), checked_NE.astype(float), strict=True)
        ]
        deviations = abs(checked_NE - reference_NE).max(axis=1) / abs(reference_NE).max(axis=1)
        assert found["precision"] == "bf16"
        assert found["num_sequences"] == len(rows)
        assert found["min_cosine"] == pytest.approx(min(cosines), abs=1e-9)
        assert found["median_cosine"] == pytest.approx(np.median(cosines), abs=1e-9)
        assert found["largest_deviation"] == pytest.approx(max(deviations), rel=1e-4)
        assert 0.99 < found["min_cosine"] < 1


def test_it_names_the_calls_that_flip(check, reads, runs):
    wanted, found = (scores_of(runs[name]) for name in ("fp32", "bf16"))
    name = max(wanted, key=lambda name: abs(wanted[name] - found[name]))
    threshold = max(printed_scores(run)[name] for run in runs.values())
    result = check(reads, "--precision=bf16", f"--threshold={threshold!r}")
    assert result.exit_code == 0
    assert result.stdout.startswith("bf16 against fp32 on cpu: 40 of 40 records, seed 0\n")
    assert f"  {name}: {wanted[name]:.7f} in fp32, {found[name]:.7f} in bf16\n" in result.stdout
    assert re.search(r"^records: [1-9]\d* of \d+ calls would flip", result.stdout, re.MULTILINE)


def test_it_says_when_no_call_flips(check, reads, runs, tmp_path):
    margins: dict[str, float] = {}
    for row in read_table(runs["fp32"].directory.prediction_results):
        name = row["Sequence_ID"].partition("_chunk_")[0]
        margins[name] = min(margins.get(name, 1), abs(float(row["score2"]) - 0.5))
    surest = max(margins, key=margins.__getitem__)
    record = next(record for record in RecordReader(reads, "dna") if record.id == surest)
    (tmp_path / "one.fa").write_text(f">{record.header}\n{record.sequence}\n")
    result = check(tmp_path / "one.fa", "--precision=bf16")
    assert result.stdout.endswith("\n\nNo call would flip.\n")


@pytest.mark.parametrize(("cosine", "warns"), [(0.9899, True), (0.99, False)])
def test_it_advises_against_a_precision_that_is_far_from_float32(cosine, warns):
    found = EmbeddingDifference("esm2", "fp8", 100, cosine, 0.998, 0.1)
    lines = list(_describe(PrecisionCheck("fp8", "an H100", 10, 10, 0, [found], [])))
    advice = "fp8 is not for these weights of esm2: a cosine is under 0.99."
    assert any(line.startswith(advice) for line in lines) == warns


@pytest.mark.slow
def test_a_sample_is_drawn_from_all_inputs(check, reads, tmp_path):
    more = write_reads(tmp_path / "more.fa", 10, seed=1)
    options = (reads, more, "--precision=bf16", "--sample=12", "--json")
    first = json.loads(check(*options).stdout)
    assert (first["num_records"], first["num_input_records"], first["seed"]) == (12, 50, 0)
    assert json.loads(check(*options).stdout) == first
    other = json.loads(check(*options, "--seed=3").stdout)
    assert other["embeddings"] != first["embeddings"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--precision=fp32"], 2, "precision fp32 means fp32 on cpu, and other precisions are"),
        ([], 2, "precision auto means fp32 on cpu"),
        (["--precision=fp8"], 2, "fp8 needs an NVIDIA GPU of the Hopper generation or newer"),
        (["--precision=bf16", "--min-length=999"], 1, "none of the 40 records drawn has an open"),
    ],
)
def test_what_cannot_be_compared_is_explained(check, reads, args, code, message):
    result = check(reads, *args)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_launch_is_refused(check, reads, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, ["check-precision", str(reads)])
    assert result.exit_code == 2
    assert "check-precision measures one device" in result.stderr

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.plugins import TOY_PLUGIN, install_project
from tests.runs import (
    ROUNDED,
    VIRNUCPRO,
    assert_same_table,
    distinct_rows,
    parts_of,
    predict_options,
    read_table,
    read_tables,
    rows_of,
    run,
    write_reads,
)
from tools.make_classifier_weights import make_classifier
from tools.make_demo_weights import PROTEIN_DIM
from tools.update_golden import GOLDEN, INPUTS
from virnucpro import PredictConfig, PredictResult, predict
from virnucpro.backend.testing import write_toy_weights
from virnucpro.errors import ClassifierError, InputError, OutputExistsError, UsageError
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.records import Record


@pytest.fixture
def predict_into(demo_weights, tmp_path):
    """Run `predict` into a directory of the test's own; settings may be given."""

    def run_predict(name: str, inputs, **settings) -> PredictResult:
        config = PredictConfig(
            **{"inputs": inputs, "output_dir": tmp_path / name, "device": "cpu"}
            | demo_weights
            | settings
        )
        return predict(config)

    return run_predict


@pytest.fixture
def reads(tmp_path):
    return write_reads(tmp_path / "reads.fa", 60)


@pytest.fixture(scope="module")
def golden_run(demo_weights, tmp_path_factory) -> PredictResult:
    output_dir = tmp_path_factory.mktemp("runs") / "golden"
    return predict(
        PredictConfig(inputs=INPUTS, output_dir=output_dir, device="cpu", **demo_weights)
    )


# The whole run, against tables that tools/update_golden.py wrote


@pytest.mark.parametrize(
    "name", ["prediction_results.txt", "prediction_results_highestscore.csv", "records.tsv"]
)
def test_golden_tables(golden_run, name):
    layout = golden_run.directory
    paths = (layout.prediction_results, layout.highest_scores, layout.records_tsv)
    path = {path.name: path for path in paths}[name]
    # The last bits of a score are the processor's and the torch release's: they choose how many
    # numbers are added up at once. 1e-6 is ten times the steps of float32 at 1.
    assert_same_table(path, GOLDEN / name, bound=ROUNDED if name == "records.tsv" else 1e-6)


def test_the_legacy_tables_have_their_old_names_and_headers(golden_run):
    merged_dir = golden_run.output_dir / "golden_merged"
    frames = (merged_dir / "prediction_results.txt").read_bytes()
    assert frames.startswith(b"Sequence_ID\tPrediction\tscore1\tscore2\nNC_001416.1:1-8000_chunk_")
    chunks = (merged_dir / "prediction_results_highestscore.csv").read_bytes()
    assert chunks.startswith(
        b"Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\nNC_001416.1:1-8000_"
    )


def test_every_record_is_accounted_for_in_input_order(golden_run):
    records = [record for path in INPUTS for record in RecordReader(path, "dna")]
    rows = read_table(golden_run.directory.records_tsv)
    assert [(row["record_id"], row["length"]) for row in rows] == [
        (record.id, str(len(record.sequence))) for record in records
    ]
    calls = Counter(row["call"] for row in rows)
    assert calls == {
        "virus": golden_run.num_virus,
        "others": golden_run.num_others,
        "none": golden_run.num_none,
    }
    assert golden_run.num_records == calls.total() == len(records)
    assert all((row["call"] == "none") == (row["reason"] != "-") for row in rows)


def test_viral_records_come_out_as_they_went_in(golden_run):
    records = [record for path in INPUTS for record in RecordReader(path, "dna")]
    rows = read_table(golden_run.directory.records_tsv)
    viral = list(RecordReader(golden_run.directory.viral_fasta, "dna"))
    wanted = [
        (record, row) for record, row in zip(records, rows, strict=True) if row["call"] == "virus"
    ]
    assert viral == [
        Record(
            f"{record.header} score={row['score']} probability=NA regions=0-{row['length']}",
            record.sequence,
        )
        for record, row in wanted
    ]
    assert any(record.sequence.islower() for record in viral)


def test_rna_gets_the_calls_of_its_dna(predict_into, tmp_path, caplog):
    dna = write_reads(tmp_path / "dna.fa", 40)
    rna = tmp_path / "rna.fa"
    lines = dna.read_text().splitlines(keepends=True)
    rna.write_text("".join(x if x[0] == ">" else x.replace("T", "U") for x in lines))
    wanted = predict_into("dna", (str(dna),))
    caplog.clear()
    found = predict_into("rna", (str(rna),))
    assert caplog.text.count("40 of 40 records are RNA: U is read as T") == 1
    tables = [
        {name.replace("rna", "dna"): table for name, table in read_tables(run.output_dir).items()}
        for run in (found, wanted)
    ]
    assert tables[0] == tables[1]


def test_run_json_tells_what_was_run(golden_run, demo_weights):
    run_json = json.loads(golden_run.directory.run_json.read_text())
    assert " ".join(sorted(run_json)) == (
        "backends calls classifier counts frame_rule histograms inputs most_viral num_processes "
        "passes precision reasons schema_version seconds settings started_at versions warnings"
    )
    assert run_json["schema_version"] == 1
    assert run_json["frame_rule"] == "open"
    assert run_json["counts"] == {
        "records": golden_run.num_records,
        "duplicate_ids": 1,
        "chunks": sum(
            int(row["num_chunks"]) for row in read_table(golden_run.directory.records_tsv)
        ),
        "frames": len(read_table(golden_run.directory.prediction_results)),
        "distinct_dna": len(distinct_rows(golden_run.output_dir, "dna")),
        "distinct_proteins": len(distinct_rows(golden_run.output_dir, "protein")),
        "unscored_frames": 0,
        "virus": golden_run.num_virus,
        "others": golden_run.num_others,
        "none": golden_run.num_none,
        "virus_few_chunks": golden_run.num_virus_few_chunks,
        "proviruses": golden_run.num_proviruses,
    }
    assert [file["path"] for file in run_json["inputs"]] == list(INPUTS)
    assert [model["name"] for model in run_json["backends"]] == ["dnabert-s", "esm2"]
    assert run_json["settings"]["protein_weights"] == demo_weights["protein_weights"]
    assert (run_json["precision"], run_json["num_processes"]) == ("fp32", 1)
    unknown = dict.fromkeys(("preset", "max_fdr", "viral_share", "expected_fdr"))
    known = {"by": "score", "threshold": 0.5, "is_share_estimated": False}
    assert run_json["calls"] == known | unknown
    assert run_json["warnings"] == []


def test_run_log_tells_the_story_and_reports_duplicates(golden_run):
    log = golden_run.directory.run_log.read_text()
    assert f"{golden_run.num_records} records" in log
    assert (
        "1 id belongs to several records; each record has its own lines in every table: same" in log
    )
    assert "DNA embeddings: " in log
    num_dna, num_proteins = (
        len(distinct_rows(golden_run.output_dir, alphabet)) for alphabet in ("dna", "protein")
    )
    found = f"{num_dna} distinct DNA and {num_proteins} distinct proteins"
    assert f"{found} of {golden_run.num_frames} open frames" in log


@pytest.mark.parametrize("alphabet", ["dna", "protein"])
def test_identical_sequences_are_embedded_once(golden_run, alphabet):
    rows = rows_of(golden_run.output_dir, alphabet)
    assert sorted(rows) == distinct_rows(golden_run.output_dir, alphabet)
    assert len(rows) < golden_run.num_frames


# Inputs


def test_a_compressed_fastq_gives_what_its_fasta_gives(predict_into, reads, tmp_path):
    fastq = gzip.compress(
        "".join(
            f"@{record.header}\n{record.sequence}\n+\n{'I' * len(record.sequence)}\n"
            for record in RecordReader(reads, "dna")
        ).encode()
    )
    (tmp_path / "reads.fastq.gz").write_bytes(fastq)
    from_fasta = predict_into("fasta", reads)
    from_fastq = predict_into("fastq", tmp_path / "reads.fastq.gz")
    assert from_fastq.directory.merged_dir.name == "reads_merged"
    assert read_tables(from_fastq.output_dir) == read_tables(from_fasta.output_dir)


@pytest.mark.slow
def test_standard_input(predict_into, reads, demo_weights, tmp_path):
    command = [*VIRNUCPRO, "predict", "-", "-o", tmp_path / "piped"]
    with reads.open("rb") as file:
        subprocess.run([*command, *predict_options(demo_weights)], stdin=file, check=True)
    assert (tmp_path / "piped" / "piped_merged").is_dir()
    assert read_tables(tmp_path / "piped") == read_tables(predict_into("file", reads).output_dir)


def test_several_inputs_are_one_after_the_other(predict_into, reads, tmp_path):
    more = write_reads(tmp_path / "more.fa", 20, seed=1)
    (tmp_path / "joined.fa").write_bytes(reads.read_bytes() + more.read_bytes())
    several = predict_into("joined", (reads, more))
    joined = predict_into("other", tmp_path / "joined.fa")
    # Batches are the same, too: nothing depends on which file a record came from.
    assert read_tables(several.output_dir) == read_tables(joined.output_dir)


def test_an_input_without_any_open_frame(predict_into, tmp_path):
    (tmp_path / "none.fa").write_text(">a\nN\n>b\n\n>c\n" + "TTAA" * 60 + "\n")
    result = predict_into("none", tmp_path / "none.fa")
    assert (result.num_records, result.num_none, result.num_frames) == (3, 3, 0)
    assert read_tables(result.output_dir)["prediction_results.txt"].count(b"\n") == 1
    assert read_tables(result.output_dir)["viral.fasta"] == b""


# Settings


def test_the_300_bp_model(predict_into, demo_weights):
    model_path = Path(demo_weights["model_path"]).with_name("300_model.safetensors")
    result = predict_into("short", INPUTS[0], model_type="300", model_path=model_path)
    rows = read_table(result.directory.records_tsv)
    assert [int(row["num_chunks"]) for row in rows] == [27, 10, 7, 27, 10, 7, 12, 10, 22]
    assert result.num_none == 0
    with pytest.raises(ClassifierError, match="300"):
        predict_into("long", INPUTS[0], model_path=model_path)


def test_min_length_leaves_out_short_records_and_changes_no_other(predict_into, golden_run):
    result = predict_into("golden", INPUTS, min_length_bp=300)
    before = {row["record_id"]: row for row in read_table(golden_run.directory.records_tsv)}
    for row in read_table(result.directory.records_tsv):
        if 0 < int(row["length"]) < 300:
            assert (row["call"], row["reason"], row["num_frames"]) == ("none", "too_short", "0")
        else:
            wanted = before[row["record_id"]]
            assert (row["call"], row["reason"]) == (wanted["call"], wanted["reason"])


def test_threshold_decides_the_calls_and_not_the_scores(predict_into, golden_run):
    result = predict_into("golden", INPUTS, threshold=0.55)
    for row, before in zip(
        read_table(result.directory.records_tsv),
        read_table(golden_run.directory.records_tsv),
        strict=True,
    ):
        assert row["score"] == before["score"]
        if row["score"] != "NA":
            assert row["call"] == ("virus" if float(row["score"]) >= 0.55 else "others")
    assert 0 < result.num_virus < golden_run.num_virus


def test_token_budgets_change_the_last_bits_at_most(predict_into, golden_run):
    result = predict_into("golden", INPUTS, dna_batch_tokens=300, protein_batch_tokens=500)
    assert_same_table(
        result.directory.prediction_results, golden_run.directory.prediction_results, bound=1e-5
    )
    log = result.directory.run_log.read_text()
    assert "batches of up to 300 tokens" in log
    assert "batches of up to 500 tokens" in log


def test_intermediate_files_are_the_forks(predict_into, shared):
    theirs = shared / "legacy/test_with_orfs_refactored"
    result = predict_into("kept", shared / "legacy/test_with_orfs.fa", keep_intermediate=True)
    names = [path.relative_to(theirs) for path in theirs.rglob("*.fa*") if path.is_file()]
    assert len(names) == 5
    for name in names:
        assert (result.output_dir / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.fixture
def toy_plugin(tmp_path, monkeypatch):
    """Install the toy backend for as long as the test lasts."""
    install_project(TOY_PLUGIN, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    sys.modules.pop("toy_plugin", None)


@pytest.mark.usefixtures("toy_plugin")
def test_another_backend_is_asked_for_by_its_name(predict_into, reads, tmp_path):
    classifier = tmp_path / "toy_classifier.safetensors"
    make_classifier(classifier, 16, PROTEIN_DIM, 500, dna_backend="toy")
    toy = {
        "dna_backend": "toy",
        "dna_weights": write_toy_weights(tmp_path / "toy.safetensors", embedding_dim=16),
    }
    result = predict_into("toy", reads, model_path=classifier, **toy)
    run_json = json.loads(result.directory.run_json.read_text())
    assert [model["name"] for model in run_json["backends"]] == ["toy", "esm2"]
    assert result.num_virus + result.num_others > 0
    with pytest.raises(ClassifierError, match=r"dnabert-s 48 .* give toy \? \+ esm2"):
        predict_into("mixed", reads, **toy)
    with pytest.raises(UsageError, match="backend toy reads dna, and protein was wanted"):
        predict_into("swapped", reads, protein_backend="toy", protein_weights=toy["dna_weights"])


# The output directory


def test_existing_results_are_left_alone(predict_into, reads):
    first = predict_into("out", reads)
    before = {path: path.stat().st_mtime for path in first.output_dir.rglob("*")}
    with pytest.raises(OutputExistsError, match=r"--resume.*--force.*-o"):
        predict_into("out", reads)
    assert before == {path: path.stat().st_mtime for path in first.output_dir.rglob("*")}


def test_force_removes_what_is_ours_and_nothing_else(predict_into, reads):
    first = predict_into("out", reads, keep_intermediate=True)
    tables = read_tables(first.output_dir)
    theirs = [first.output_dir / name for name in ("notes.txt", "reads_merged/plot.png")]
    for path in theirs:
        path.write_text("not ours")
    parts_dir = first.directory.parts_dir("dna")
    stale = parts_dir / "part-00007-000003.h5"
    stale.write_bytes(next(parts_dir.glob("*.h5")).read_bytes())
    again = predict_into("out", reads, force=True)
    assert [path.read_text() for path in theirs] == ["not ours"] * 2
    assert not stale.exists()
    assert not again.directory.frames_fasta("dna").exists()
    for path in theirs:
        path.unlink()
    assert read_tables(again.output_dir) == tables
    assert again.directory.run_log.read_text().count("find open frames") == 1


def test_a_second_run_in_the_same_directory_is_refused(reads, demo_weights, tmp_path):
    config = PredictConfig(inputs=reads, output_dir=tmp_path / "out", device="cpu", **demo_weights)
    refusals = []

    def start_another(progress) -> None:
        again = {"output_dir": config.output_dir, "resume": True} | demo_weights
        with pytest.raises(UsageError, match="out: another run is working here") as refused:
            predict(PredictConfig(inputs=reads, device="cpu", **again))
        refusals.append(refused)

    result = predict(config, on_progress=start_another)
    assert refusals
    assert result.num_records == 60


def test_a_failed_run_says_so_in_its_log_and_leaves_the_directory_free(
    predict_into, reads, tmp_path
):
    (tmp_path / "broken.fa").write_text(">a\nACGT\n>b\nAC!T\n")
    with pytest.raises(InputError, match="position 3"):
        predict_into("out", tmp_path / "broken.fa")
    assert "ended by InputError: " in (tmp_path / "out/run.log").read_text()
    assert predict_into("out", reads, resume=True).num_records == 60


# Python


def test_progress_reaches_the_end_of_each_pass(reads, demo_weights, tmp_path):
    seen = []
    config = PredictConfig(inputs=reads, output_dir=tmp_path / "out", device="cpu", **demo_weights)
    predict(config, on_progress=seen.append)
    last = {progress.name: progress for progress in seen}
    assert list(last) == ["DNA embeddings", "protein embeddings"]
    for name, alphabet in zip(last, ("dna", "protein"), strict=True):
        assert last[name].cost == last[name].total_cost
        assert last[name].num_rows == len(rows_of(config.output_dir, alphabet))


def test_predict_leaves_the_callers_logging_alone(predict_into, reads):
    before = (logging.getLogger().handlers[:], logging.getLogger("virnucpro").level)
    predict_into("out", reads)
    assert before == (logging.getLogger().handlers, logging.getLogger("virnucpro").level)


@pytest.mark.slow
def test_python_virnucpro_from_a_checkout(predict_into, reads, demo_weights, tmp_path):
    command = [VIRNUCPRO[0], "virnucpro", "predict", reads, "-o", tmp_path / "by_path"]
    done = run(*command, *predict_options(demo_weights), "--dataloader-workers=2")
    assert done.returncode == 0, done.stderr
    wanted = predict_into("in_process", reads)
    assert read_tables(tmp_path / "by_path") == read_tables(wanted.output_dir)
    assert parts_of(tmp_path / "by_path").keys() == parts_of(wanted.output_dir).keys()


def test_a_frame_that_does_not_fit_marks_its_record(reads, demo_weights, tmp_path, monkeypatch):
    """The longest frames of one record do not fit, as with a GPU too small for them."""
    from virnucpro_esm2 import backend

    load_encoder = type(backend).load_encoder

    def load_small_device(self, weights, **how):
        encoder = load_encoder(self, weights, **how)

        def encode(batch):
            if len(batch.rows) * batch.max_length > 150:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return encoder(batch)

        return encode

    monkeypatch.setattr(type(backend), "load_encoder", load_small_device)
    (tmp_path / "long.fa").write_text(">long\n" + "ATG" * 166 + "\n")
    inputs = (str(reads), str(tmp_path / "long.fa"))
    config = PredictConfig(inputs=inputs, output_dir=tmp_path / "out", device="cpu", **demo_weights)
    result = predict(config)
    lines = {line["record_id"]: line for line in read_table(result.directory.records_tsv)}
    assert lines["long"]["reason"] == "out_of_memory"
    assert lines["long"]["call"] == "none"
    assert result.num_unscored_frames == int(lines["long"]["num_frames"])
    assert [line["reason"] for name, line in lines.items() if name != "long"].count(
        "out_of_memory"
    ) == 0
    monkeypatch.undo()
    again = predict(dataclasses.replace(config, resume=True))
    assert again.num_unscored_frames == 0

"""`virnucpro predict` with a head over chunks, under the frame rule `stretches`."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.runs import predict_options, read_table, read_tables
from tools.make_demo_weights import DNA_DIM, PROTEIN_DIM
from virnucpro import CallConfig, PredictConfig, PredictResult, call, predict
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.cli.main import main
from virnucpro.errors import IdentityMismatchError
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes
from virnucpro.scoring.classifier import ChunkClassifier, ClassifierMetadata
from virnucpro.scoring.classifier_files import read_classifier, save_classifier
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frame_store import open_frame_store

RULE = "stretches:2:15"
# Twelve codons and no stop.
SENSE = "GCAGATCTCAAATCCGGTCATTTCCAGACGATGGTC"
SIZES = ChunkHeadSizes(DNA_DIM, PROTEIN_DIM, width=16, hidden=8)
CALIBRATION = Calibration(slope=4.0, slope_growth=0.5, offset=-0.25, most_chunks=20)


_STEP = 5e-5
"""Half of the last printed digit of a score or a probability."""


@pytest.fixture(scope="module")
def head() -> ChunkHead:
    torch.manual_seed(0)
    head = ChunkHead(SIZES).eval().requires_grad_(False)
    for parameter in head.output.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    # The logits of the contigs below then lie on both sides of 0.
    head.output[3].bias += 9.9
    return head


@pytest.fixture(scope="module")
def weights(demo_weights, head, tmp_path_factory) -> dict[str, str]:
    """The demonstration's settings, with a classifier over chunks."""
    path = tmp_path_factory.mktemp("classifier") / "chunk.safetensors"
    metadata = ClassifierMetadata(
        "dnabert-s",
        "esm2",
        DNA_DIM,
        PROTEIN_DIM,
        500,
        calibration=CALIBRATION,
        frame_rule=RULE,
        chunk_head=SIZES,
    )
    save_classifier(path, head.state_dict(), metadata)
    return demo_weights | {"model_path": str(path)}


@pytest.fixture(scope="module")
def contigs(tmp_path_factory) -> Path:
    """Contigs of up to four chunks, some of them without a stretch, and what is too short."""
    generator = random.Random(0)
    contigs = {
        f"contig_{number}": "".join(generator.choices("ACGT", k=generator.randint(100, 1800)))
        for number in range(12)
    }
    contigs |= {
        "unknown": "N" * 700,
        "empty": "",
        "tiny": "AC",
        "half": "N" * 500 + SENSE * 13,
        "poly_g": "G" * 600,
    }
    contigs["repeated"] = contigs["contig_3"]
    path = tmp_path_factory.mktemp("input") / "contigs.fa"
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    return path


@pytest.fixture(scope="module")
def finished(contigs, weights, tmp_path_factory) -> tuple[PredictConfig, PredictResult]:
    config = PredictConfig(
        inputs=(str(contigs),),
        output_dir=tmp_path_factory.mktemp("run") / "out",
        device="cpu",
        keep_intermediate=True,
        **weights,
    )
    return config, predict(config)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def plain_logits(result: PredictResult, head: ChunkHead) -> dict[str, float]:
    """Return the logits of the chunks that have any, one by one by the head alone."""
    store = open_frame_store(result.directory.frame_store_dir)
    first = store.chunk_first_frame
    readers = {
        name: EmbeddingReader(finished_parts(result.directory.parts_dir(name)))
        for name in ("dna", "protein")
    }
    wanted = {}
    for chunk, name in enumerate(store.chunk_ids(0, store.num_chunks)):
        rows = np.arange(first[chunk], first[chunk + 1])
        if not len(rows):
            continue
        dna, protein = (
            readers[kind].gather(store.sequences(kind).representatives[chosen])
            for kind, chosen in (("dna", rows[:1]), ("protein", rows))
        )
        arrays = (dna, protein[None], store.stretch_features(rows)[None])
        logit = head(*map(torch.from_numpy, arrays), torch.ones(1, len(rows), dtype=torch.bool))
        wanted[name] = logit.item()
    return wanted


def test_every_chunk_with_a_stretch_has_the_score_of_the_plain_head(finished, head) -> None:
    _, result = finished
    wanted = plain_logits(result, head)
    table = read_table(result.directory.prediction_results)
    assert [row["Sequence_ID"] for row in table] == list(wanted)
    logits = np.array(list(wanted.values()))
    assert np.ptp(sigmoid(logits)) > 0.2
    for name, sign in (("score1", -1), ("score2", 1)):
        found = [float(row[name]) for row in table]
        np.testing.assert_allclose(found, sigmoid(sign * logits), atol=1e-6)
        assert found == np.float32(found).tolist()
    for row in table:
        assert row["Prediction"] == ("virus" if row["score2"] > row["score1"] else "others")
    highest = read_table(result.directory.highest_scores)
    assert [[row["Modified_ID"], row["max_score_0"], row["max_score_1"]] for row in highest] == [
        [row["Sequence_ID"], row["score1"], row["score2"]] for row in table
    ]
    assert {row["Is_Virus"] for row in highest} == {"True", "False"}


def test_the_score_of_a_record_is_that_of_its_mean_logit(finished) -> None:
    _, result = finished
    logits: dict[str, list[float]] = {}
    for row in read_table(result.directory.highest_scores):
        virus, others = float(row["max_score_1"]), float(row["max_score_0"])
        record = row["Modified_ID"].partition("_chunk_")[0]
        logits.setdefault(record, []).append(np.log(virus / others))
    rows = {row["record_id"]: row for row in read_table(result.directory.records_tsv)}
    assert max(map(len, logits.values())) > 2
    for name, row in rows.items():
        if name not in logits:
            assert (row["call"], row["score"], row["probability"]) == ("none", "NA", "NA")
            continue
        assert float(row["score"]) == pytest.approx(sigmoid(np.mean(logits[name])), abs=_STEP)
        assert int(row["num_open_chunks"]) == len(logits[name])
        assert int(row["num_viral_chunks"]) == sum(logit >= 0 for logit in logits[name])
        probability = CALIBRATION.probabilities(
            np.array([float(row["score"])]), np.array([len(logits[name])])
        )
        assert float(row["probability"]) == pytest.approx(probability[0], abs=_STEP)
    assert {
        name: rows[name]["reason"] for name in ("unknown", "empty", "tiny", "half", "poly_g")
    } == {
        "unknown": "no_stretch",
        "poly_g": "no_stretch",
        "empty": "empty",
        "tiny": "too_short",
        "half": "-",
    }
    assert (rows["half"]["num_chunks"], rows["half"]["num_open_chunks"]) == ("2", "1")
    assert rows["repeated"]["score"] == rows["contig_3"]["score"]


def test_the_open_frames_of_a_chunk_are_scored_together(
    weights, head, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random.Random(1)
    # Some chunks have no open frame, and most have several.
    contigs = {
        f"contig_{number}": "".join(generator.choices("ACGT", (50, 30, 30, number), k=2600))
        for number in range(9)
    }
    path = tmp_path / "contigs.fa"
    contigs["unknown"] = "N" * 700
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    state, metadata, _ = read_classifier(Path(weights["model_path"]))
    model = tmp_path / "open.safetensors"
    save_classifier(model, state, replace(metadata, frame_rule="open"))
    settings = {"output_dir": tmp_path / "out", "device": "cpu", **weights, "model_path": model}
    config = PredictConfig(inputs=(str(path),), **settings)
    result = predict(config)
    wanted = plain_logits(result, head)
    store = open_frame_store(result.directory.frame_store_dir)
    # Of the DNA, only that of the first frames is embedded. The rest would change nothing.
    num_chunks = np.count_nonzero(np.diff(store.chunk_first_frame))
    assert len(finished_rows(finished_parts(result.directory.parts_dir("dna")))) == num_chunks
    assert num_chunks < store.num_distinct("dna")
    tables = read_tables(result.output_dir)
    with monkeypatch.context() as patch:
        patch.setattr(ChunkClassifier, "reads_chunks", False)
        assert read_tables(predict(replace(config, resume=True)).output_dir) == tables
        whole = predict(replace(config, output_dir=tmp_path / "all"))
        assert read_tables(whole.output_dir) == tables
    assert len(wanted) < store.num_chunks
    assert len(wanted) < store.num_rows / 2
    found = {
        row["Sequence_ID"]: float(row["score2"])
        for row in read_table(result.directory.prediction_results)
    }
    assert list(found) == list(wanted)
    np.testing.assert_allclose(
        list(found.values()), sigmoid(np.array(list(wanted.values()))), atol=1e-6
    )
    for row in read_table(result.directory.records_tsv):
        logits = [wanted[name] for name in wanted if name.startswith(row["record_id"] + "_")]
        if row["record_id"] == "unknown":
            assert (row["call"], row["reason"]) == ("none", "no_open_frame")
        else:
            assert float(row["score"]) == pytest.approx(sigmoid(np.mean(logits)), abs=_STEP)
    call(CallConfig(run_dir=result.output_dir))
    assert read_tables(result.output_dir) == tables


def test_run_json_and_the_log_name_the_rule(finished, weights) -> None:
    _, result = finished
    document = json.loads(result.directory.run_json.read_text())
    assert document["frame_rule"] == RULE
    assert document["classifier"]["made_for"]["chunk_head"] == dataclasses.asdict(SIZES)
    log = result.directory.run_log.read_text()
    assert f"frame rule: {RULE}, as {weights['model_path']} states" in log
    assert "find stretches" in log
    assert "open frames" not in log
    # The DNA of a chunk is embedded once, whatever the number of its stretches.
    store = open_frame_store(result.directory.frame_store_dir)
    num_chunks = np.count_nonzero(np.diff(store.chunk_first_frame))
    assert document["counts"]["distinct_dna"] < num_chunks < document["counts"]["frames"]


def test_intermediate_files_hold_the_stretches(finished) -> None:
    _, result = finished
    store = open_frame_store(result.directory.frame_store_dir)
    chunks, dna, proteins = (
        {record.header: record.sequence for record in RecordReader(path, kind)}
        for path, kind in (
            (result.directory.chunked_fasta(500), "dna"),
            (result.directory.frames_fasta("dna"), "dna"),
            (result.directory.frames_fasta("protein"), "protein"),
        )
    )
    assert list(dna) == list(proteins) == store.frame_ids(0, store.num_rows)
    assert min(map(len, proteins.values())) >= 15
    for name, letters in dna.items():
        assert letters == chunks[name[: name.rindex("_")][:-2]]


def test_a_resumed_run_writes_the_same_tables(finished, tmp_path) -> None:
    config, result = finished
    shutil.copytree(result.output_dir, tmp_path / "out")
    finished_parts(tmp_path / "out/checkpoints/protein")[0].unlink()
    again = predict(replace(config, output_dir=tmp_path / "out", resume=True))
    assert read_tables(again.output_dir) == read_tables(result.output_dir)


def test_a_run_is_not_resumed_by_another_rule(finished, demo_weights) -> None:
    config, _ = finished
    other = replace(config, resume=True, model_path=Path(demo_weights["model_path"]))
    with pytest.raises(IdentityMismatchError, match=f"rule is open now and was {RULE} there"):
        predict(other)


def test_scores_do_not_depend_on_the_other_records(finished, contigs, tmp_path) -> None:
    config, result = finished
    record = next(record for record in RecordReader(contigs, "dna") if record.id == "contig_5")
    (tmp_path / "one.fa").write_text(f">{record.header}\n{record.sequence}\n")
    alone = predict(
        replace(config, inputs=(str(tmp_path / "one.fa"),), output_dir=tmp_path / "alone")
    )
    (found,) = read_table(alone.directory.records_tsv)
    wanted = {row["record_id"]: row for row in read_table(result.directory.records_tsv)}
    assert float(found["score"]) == pytest.approx(float(wanted["contig_5"]["score"]), abs=1e-6)


def test_a_stretch_that_does_not_fit_is_left_out(finished, tmp_path, monkeypatch) -> None:
    """Proteins of more than 60 residues do not fit, as with a GPU too small for them."""
    from virnucpro_esm2 import backend

    load_encoder = type(backend).load_encoder

    def load_small_device(self, weights, **how):
        encoder = load_encoder(self, weights, **how)

        def encode(batch):
            if batch.max_length > 62:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return encoder(batch)

        return encode

    monkeypatch.setattr(type(backend), "load_encoder", load_small_device)
    config, whole = finished
    result = predict(replace(config, output_dir=tmp_path / "out"))
    store = open_frame_store(result.directory.frame_store_dir)
    proteins = store.sequences("protein").get_many(np.arange(store.num_rows))
    fits = np.array([len(protein) <= 60 for protein in proteins])
    assert result.num_unscored_frames == np.count_nonzero(~fits)
    first = store.chunk_first_frame
    names = store.chunk_ids(0, store.num_chunks)
    scored = [
        name
        for name, *ends in zip(names, first, first[1:], strict=False)
        if fits[slice(*ends)].any()
    ]
    found, wanted = (
        {row["Sequence_ID"]: row["score2"] for row in read_table(one.directory.prediction_results)}
        for one in (result, whole)
    )
    assert list(found) == scored
    assert len(scored) < len(wanted)
    same = [
        name
        for name, *ends in zip(names, first, first[1:], strict=False)
        if name in wanted and fits[slice(*ends)].all()
    ]
    assert same
    for name in same:
        assert float(found[name]) == pytest.approx(float(wanted[name]), abs=1e-6)
    rows = read_table(result.directory.records_tsv)
    assert {row["reason"] for row in rows if row["call"] != "none"} == {"-", "out_of_memory"}


def test_check_precision_compares_chunks_and_records(
    contigs, weights, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (*predict_options(weights), "--precision=bf16", "--json")
    result = CliRunner().invoke(main, ["check-precision", str(contigs), *options])
    assert result.exit_code == 0, result.output
    chunks, records = json.loads(result.stdout)["scores"]
    assert (chunks["level"], records["level"]) == ("chunks", "records")
    assert chunks["num_scored"] > records["num_scored"] > 10
    assert 0 < chunks["median"] < chunks["largest"] < 0.1

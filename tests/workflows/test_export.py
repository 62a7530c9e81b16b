"""Embeddings of a run, and of what `migrate` wrote, in the formats of other programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests import legacy_files as old
from tests.checkpoints.test_parts import IDENTITY, identity_over
from tests.runs import write_reads
from virnucpro import PredictConfig, predict
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import finished_parts, part_name, write_part
from virnucpro.cli.main import main
from virnucpro.config import ExportConfig, FrameRule, MigrateConfig
from virnucpro.errors import CheckpointError, OutputExistsError
from virnucpro.legacy.documents import read_documents
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store, open_frame_store
from virnucpro.workflows.export import export_embeddings
from virnucpro.workflows.migrate import migrate_features

DNA_FIRST = ("dna", "protein")
DIMS = EmbeddingDims(6, 4)
DNA = old.make_frames(30, DIMS.dna, seed=1)
PROTEIN = old.make_frames(30, DIMS.protein, seed=2)


@pytest.fixture(scope="module")
def run(demo_weights, tmp_path_factory) -> Path:
    """A finished run, in which some frames have the same sequence."""
    directory = tmp_path_factory.mktemp("run")
    reads = write_reads(directory / "reads.fa", 40)
    config = PredictConfig(
        inputs=[str(reads)], output_dir=directory / "out", device="cpu", **demo_weights
    )
    predict(config)
    return directory / "out"


@pytest.fixture
def unfinished(run, tmp_path) -> Path:
    """A copy of the run that lacks the proteins."""
    shutil.copytree(run, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished/checkpoints/protein")
    return tmp_path / "unfinished"


@pytest.fixture
def migrated(tmp_path) -> Path:
    """What `migrate` makes of DNA and proteins, of which 20 ids are in both."""
    old.save(tmp_path / "old/dna.pt", old.dna_document(dict(list(DNA.items())[:25])))
    old.save(tmp_path / "old/protein.pt", old.protein_document(dict(list(PROTEIN.items())[5:])))
    migrate_features(
        MigrateConfig(
            sources=(tmp_path / "old",),
            output_path=tmp_path / "migrated",
            dna_dim=DIMS.dna,
            protein_dim=DIMS.protein,
            jobs=1,
        )
    )
    return tmp_path / "migrated"


def read_run(run: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    store = open_frame_store(run / "checkpoints/frames")
    features = {
        name: EmbeddingReader(finished_parts(run / "checkpoints" / name)).gather(
            store.sequences(name).representatives
        )
        for name in ("dna", "protein")
    }
    return store.frame_ids(0, store.num_rows), features


def read_numbers(run: Path) -> list[list[str]]:
    (table,) = run.glob("*_merged/prediction_results.txt")
    return [line.split("\t") for line in table.read_text().splitlines()[1:]]


def test_merged_files_hold_what_the_original_wrote(run, tmp_path):
    ids, features = read_run(run)
    summary = export_embeddings(ExportConfig(run, tmp_path / "pt", "pt", sequences_per_file=30))
    num_files = -(-len(ids) // 30)
    assert num_files > 1
    assert [path.name for path in summary.paths] == [
        f"output_{number}_merged.pt" for number in range(1, num_files + 1)
    ]
    documents = [torch.load(path, weights_only=True) for path in summary.paths]
    assert all(document.keys() == {"ids", "data"} for document in documents)
    assert [name for document in documents for name in document["ids"]] == ids
    data = torch.cat([document["data"] for document in documents])
    np.testing.assert_array_equal(data, np.concatenate(list(features.values()), axis=1))
    assert sorted(path.name for path in (tmp_path / "pt").iterdir()) == sorted(
        path.name for path in summary.paths
    )


def test_merged_files_can_be_migrated_again(migrated, tmp_path):
    (path,) = export_embeddings(ExportConfig(migrated, tmp_path / "pt", "pt")).paths
    ((generation, document),) = read_documents(path, DIMS)
    assert generation.version == 0
    assert document["ids"] == list(DNA)[5:25]
    np.testing.assert_array_equal(
        document["embeddings"]["dna"], [DNA[name] for name in document["ids"]]
    )
    np.testing.assert_array_equal(
        document["embeddings"]["protein"], [PROTEIN[name] for name in document["ids"]]
    )


def test_arrays(run, tmp_path):
    ids, features = read_run(run)
    (path,) = export_embeddings(ExportConfig(run, tmp_path / "npz", "npz")).paths
    with np.load(path) as arrays:
        assert set(arrays) == {"ids", "dna", "protein"}
        assert arrays["ids"].tolist() == ids
        for name, expected in features.items():
            assert arrays[name].dtype == np.float32
            np.testing.assert_array_equal(arrays[name], expected)


def test_anndata_is_laid_out_as_its_format_says(run, tmp_path):
    ids, features = read_run(run)
    (path,) = export_embeddings(ExportConfig(run, tmp_path / "h5ad", "anndata")).paths
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
        np.testing.assert_array_equal(file["X"], np.concatenate(list(features.values()), axis=1))
        obs = file["obs"]
        assert obs.attrs["_index"] == "frame_id"
        columns = ["record", "chunk", "row", "score_others", "score_virus"]
        assert obs.attrs["column-order"].tolist() == columns
        assert obs["frame_id"].asstr()[:].tolist() == ids
        assert obs["chunk"].asstr()[:].tolist() == [name[:-2] for name in ids]
        assert obs["record"].asstr()[0] == ids[0].split("_chunk_")[0]
        scores = np.float32([[float(x) for x in line[2:]] for line in read_numbers(run)])
        np.testing.assert_array_equal(obs["score_virus"], scores[:, 1])
        backends = file["var/backend"].asstr()[:].tolist()
        dims = [values.shape[1] for values in features.values()]
        assert backends == ["dnabert-s"] * dims[0] + ["esm2"] * dims[1]
        assert file["uns/virnucpro/dna/precision"].asstr()[()] == "fp32"


def test_parquet_has_the_rows_and_columns_of_anndata(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    anndata = pytest.importorskip("anndata")
    (path,) = export_embeddings(ExportConfig(run, tmp_path / "parquet", "parquet")).paths
    (wanted_path,) = export_embeddings(ExportConfig(run, tmp_path / "h5ad", "anndata")).paths
    table, wanted = parquet.read_table(path), anndata.read_h5ad(wanted_path)
    assert table.column_names == ["frame_id", *wanted.obs.columns, "dna", "protein"]
    assert table["frame_id"].to_pylist() == list(wanted.obs_names)
    for name in wanted.obs.columns:
        assert table[name].to_pylist() == wanted.obs[name].tolist()
    features = np.hstack([np.array(table[name].to_pylist(), np.float32) for name in DNA_FIRST])
    np.testing.assert_array_equal(features, wanted.X)
    about = json.loads(table.schema.metadata[b"dna"])
    assert about["backend"] == "dnabert-s"


def test_ids_that_are_not_utf8_can_be_exported_to_parquet(demo_weights, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "odd.fa").write_bytes(b">caf\xe9\n" + b"ATGGCTGCACTG" * 10 + b"\n")
    config = PredictConfig(
        inputs=str(tmp_path / "odd.fa"), output_dir=tmp_path / "run", device="cpu", **demo_weights
    )
    predict(config)
    (path,) = export_embeddings(ExportConfig(tmp_path / "run", tmp_path / "p", "parquet")).paths
    assert set(parquet.read_table(path)["record"].to_pylist()) == {"caf\ufffd"}


def test_anndata_reads_it(run, tmp_path):
    anndata = pytest.importorskip("anndata")
    ids, features = read_run(run)
    (path,) = export_embeddings(ExportConfig(run, tmp_path / "h5ad", "anndata")).paths
    table = anndata.read_h5ad(path)
    assert table.obs_names.tolist() == ids
    np.testing.assert_array_equal(table[:, table.var.backend == "dnabert-s"].X, features["dna"])


@pytest.mark.parametrize("rule", ["stretches:2:20", "open:code=11"])
def test_rows_have_the_scores_of_their_chunks(tmp_path, caplog, rule):
    reads = write_reads(tmp_path / "reads.fa", 12)
    run = tmp_path / "run"
    store = build_frame_store(
        [str(reads)], run / "checkpoints/frames", StoreSettings(300, rule=FrameRule.parse(rule))
    )
    rng = np.random.default_rng(0)
    for alphabet in ("dna", "protein"):
        rows = np.unique(store.sequences(alphabet).representatives)
        embeddings = rng.normal(size=(len(rows), 4)).astype(np.float32)
        identity = identity_over(store)
        write_part(run / "checkpoints" / alphabet, part_name(0, 0), rows, embeddings, identity)
    chunks = store.find_chunks(np.arange(store.num_rows))
    scored = np.unique(chunks)
    assert len(scored) < store.num_rows
    scores = dict(zip(scored.tolist(), rng.random(len(scored), np.float32), strict=True))
    names = store.chunk_ids(0, store.num_chunks)
    lines = [f"{names[chunk]}\tvirus\t{1 - score}\t{score}" for chunk, score in scores.items()]
    table = run / "reads_merged/prediction_results.txt"
    table.parent.mkdir()
    table.write_text("\n".join(["Sequence_ID\tPrediction\tscore1\tscore2", *lines, ""]))
    (path,) = export_embeddings(ExportConfig(run, tmp_path / "h5ad", "anndata")).paths
    ids, features = read_run(run)
    assert ids[0].startswith(f"{names[chunks[0]]}")
    with h5py.File(path) as file:
        obs = file["obs"]
        assert obs["frame_id"].asstr()[:].tolist() == ids
        assert obs["chunk"].asstr()[:].tolist() == [names[chunk] for chunk in chunks]
        np.testing.assert_array_equal(obs["score_virus"], [scores[chunk] for chunk in chunks])
        np.testing.assert_array_equal(file["X"], np.concatenate(list(features.values()), axis=1))
        assert file["uns/virnucpro/dna/frame_rule"].asstr()[()] == rule
    table.write_text("\n".join(["Sequence_ID\tPrediction\tscore1\tscore2", *lines[1:], ""]))
    (path,) = export_embeddings(ExportConfig(run, tmp_path / "again", "anndata")).paths
    assert "has other frames than the embeddings" in caplog.text
    with h5py.File(path) as file:
        assert "score_virus" not in file["obs"]


def test_models_that_embedded_no_row_in_common_are_refused(tmp_path):
    for row, alphabet in enumerate(("dna", "protein")):
        embeddings = np.ones((1, 4), np.float32)
        rows = np.array([row])
        write_part(tmp_path / alphabet, part_name(0, 0), rows, embeddings, IDENTITY, ["a"])
    with pytest.raises(CheckpointError, match="no row has all its embeddings; finish the run"):
        export_embeddings(ExportConfig(tmp_path, tmp_path / "out", "npz"))


def test_what_migrate_wrote_has_no_scores(migrated, tmp_path):
    (path,) = export_embeddings(ExportConfig(migrated, tmp_path / "h5ad", "anndata")).paths
    with h5py.File(path) as file:
        assert file["obs"].attrs["column-order"].tolist() == ["record", "chunk", "row"]
        assert file["obs/record"].asstr()[0] == "r5"


def test_a_table_of_other_frames_gives_no_scores(run, tmp_path, caplog):
    shutil.copytree(run, tmp_path / "copy")
    (table,) = (tmp_path / "copy").glob("*_merged/prediction_results.txt")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    (path,) = export_embeddings(ExportConfig(tmp_path / "copy", tmp_path / "x", "anndata")).paths
    assert "has other frames than the embeddings" in caplog.text
    with h5py.File(path) as file:
        assert "score_virus" not in file["obs"]


def test_rows_without_partner_are_counted(migrated, tmp_path, caplog):
    summary = export_embeddings(ExportConfig(migrated, tmp_path / "npz", "npz"))
    assert (summary.num_rows, summary.num_partial) == (20, 10)
    assert "10 rows are left out because an embedding is missing" in caplog.text


def test_one_kind_of_embeddings(unfinished, tmp_path, caplog):
    with pytest.raises(
        CheckpointError, match=r"unfinished: holds dna embeddings only.*format \(--to\)"
    ):
        export_embeddings(ExportConfig(unfinished, tmp_path / "pt", "pt"))
    (path,) = export_embeddings(ExportConfig(unfinished, tmp_path / "npz", "npz")).paths
    with np.load(path) as arrays:
        assert set(arrays) == {"ids", "dna"}
    assert "unfinished: holds dna embeddings only; the output lacks all others" in caplog.text


def test_damaged_parts_are_not_exported(unfinished, tmp_path):
    part = finished_parts(unfinished / "checkpoints/dna")[0]
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{part.name}: has changed"):
        export_embeddings(ExportConfig(unfinished, tmp_path / "npz", "npz"))
    assert not (tmp_path / "npz").exists()


def test_a_frame_store_of_another_input_is_refused(run, unfinished, tmp_path):
    frames = unfinished / "checkpoints/frames"
    reads = write_reads(tmp_path / "reads.fa", 40, seed=1)
    for length_bp, min_length_bp in ((500, 0), (500, 50), (300, 0)):
        path = reads if length_bp == 500 and not min_length_bp else run.parent / "reads.fa"
        build_frame_store(
            [str(path)], frames, StoreSettings(length_bp, min_length_bp=min_length_bp)
        )
        with pytest.raises(CheckpointError, match=r"part-.* and that of the run's frame store is"):
            export_embeddings(ExportConfig(unfinished, tmp_path / "npz", "npz"))
    assert not (tmp_path / "npz").exists()


def test_a_damaged_frame_store_is_refused(unfinished, tmp_path):
    path = unfinished / "checkpoints/frames/headers.text"
    path.write_bytes(path.read_bytes().replace(b"read_1", b"read_7", 1))
    with pytest.raises(CheckpointError, match=r"headers\.text changed since they were written"):
        export_embeddings(ExportConfig(unfinished, tmp_path / "npz", "npz"))


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputExistsError, match="not empty"):
        export_embeddings(ExportConfig(run, tmp_path, "npz"))
    with pytest.raises(OutputExistsError, match="mine"):
        export_embeddings(ExportConfig(run, tmp_path / "mine", "npz"))


def test_the_command(migrated, tmp_path):
    options = ["export", str(migrated), "--to", "npz", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0
    assert "20 rows in 1 file in" in result.output
    assert "one embedding only: 10 rows" in result.output
    result = CliRunner().invoke(main, ["export", str(tmp_path / "out"), *options[2:-1], "x"])
    assert result.exit_code == 1

"""Old features become parts that stand alone; old classifiers become safetensors."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
import torch

from tests import legacy_files as old
from tests.runs import MISSING, assert_schema_knows, change
from tools.make_classifier_weights import make_classifier
from virnucpro.backend.registry import load_backend
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import check_part, finished_parts, finished_rows, read_identity
from virnucpro.config import MigrateConfig
from virnucpro.errors import ClassifierError, OutputExistsError, UsageError
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import load_classifier, read_classifier
from virnucpro.workflows.migrate import REPORT_NAME, migrate_classifier, migrate_features

DIMS = EmbeddingDims(6, 4)
DNA = old.make_frames(30, DIMS.dna, seed=1)
PROTEIN = old.make_frames(30, DIMS.protein, seed=2)


def part_of(frames, start, stop):
    return dict(list(frames.items())[start:stop])


@pytest.fixture
def run(tmp_path):
    """A run directory with features of several generations, and DNA for five ids more."""
    directory = tmp_path / "old"
    old.save(
        directory / "s_nucleotide/output_1_DNABERT_S.pt", old.dna_document(part_of(DNA, 0, 12))
    )
    document = old.versioned(old.dna_document(part_of(DNA, 12, 30)))
    old.save(directory / "s_nucleotide/output_2_DNABERT.pt", document, done=True)
    old.save(directory / "s_protein/output_1_ESM.pt", old.protein_document(part_of(PROTEIN, 0, 12)))
    old.write_shard(directory / "esm_v2/shard_0.h5", part_of(PROTEIN, 12, 20))
    document = old.batch_document(part_of(PROTEIN, 20, 25))
    old.save(directory / ".checkpoints/shard_1/batch_00000.pt", document, done=True, protocol=4)
    old.write_state(directory, ["completed"] * 6)
    return directory


def migrate(*sources, to=None, **settings):
    report = migrate_features(
        MigrateConfig(
            sources=sources,
            output_path=to,
            dna_dim=DIMS.dna,
            protein_dim=DIMS.protein,
            **{"jobs": 1, **settings},
        )
    )
    assert_schema_knows(report, REPORT_NAME)
    return report


def read_migrated(directory):
    """Return the embeddings of each alphabet by id, after checking every part."""
    found = {}
    for alphabet in ("dna", "protein"):
        found[alphabet] = {}
        for part in finished_parts(directory / alphabet):
            check_part(part)
            with h5py.File(part) as file:
                names = file["ids"].asstr()[:].tolist()
                found[alphabet] |= dict(zip(names, file["embeddings"][:], strict=True))
    return found


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def snapshot(directory):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_of_several_generations(run, tmp_path, jobs):
    before = snapshot(run)
    report = migrate(run, to=tmp_path / "new", jobs=jobs)
    assert snapshot(run) == before
    found = read_migrated(tmp_path / "new")
    assert_same(found["dna"], DNA)
    assert_same(found["protein"], part_of(PROTEIN, 0, 25))
    assert report["status"] == "complete"
    assert report["counts"] == {
        "ids": 30,
        "dna": 30,
        "protein": 25,
        "dna without protein": 5,
        "protein without dna": 0,
        "repeated": {"dna": 0, "protein": 0},
        "ambiguous": {"dna": 0, "protein": 0},
        "files refused": 0,
    }
    assert json.loads((tmp_path / "new" / REPORT_NAME).read_text()) == report


def test_a_file_gives_what_other_files_lack(run, tmp_path):
    # Merged features hold both alphabets. Their DNA is in another file as well.
    document = old.merged_document(part_of(DNA, 25, 30), part_of(PROTEIN, 25, 30))
    old.save(run / "s_merged/output_9_merged.pt", document)
    migrate(run, to=tmp_path / "new")
    found = read_migrated(tmp_path / "new")
    assert_same(found["dna"], DNA)
    assert_same(found["protein"], PROTEIN)


def test_rows_join_the_alphabets(run, tmp_path):
    migrate(run, to=tmp_path / "new")
    rows = {}
    for alphabet in ("dna", "protein"):
        parts = finished_parts(tmp_path / "new" / alphabet)
        rows[alphabet] = finished_rows(parts)
        reader = EmbeddingReader(parts)
        frames = list({"dna": DNA, "protein": PROTEIN}[alphabet].values())
        assert np.array_equal(reader.gather(rows[alphabet]), frames[: len(rows[alphabet])])
    assert rows["dna"].tolist() == list(range(30))
    assert rows["protein"].tolist() == list(range(25))


def test_identities_say_what_is_known(run, tmp_path):
    migrate(run, to=tmp_path / "new")
    identities = [
        read_identity(part)
        for alphabet in ("dna", "protein")
        for part in finished_parts(tmp_path / "new" / alphabet)
    ]
    assert {one.backend for one in identities} == {"dnabert-s", "esm2"}
    assert {one.precision for one in identities} == {"unknown", "fp16"}
    assert {one.chunk_length_bp for one in identities} == {500}
    assert all(one.weights_identity.startswith("unknown (migrated): ") for one in identities)
    assert len({one.input_digest for one in identities}) == 1
    for one in identities:
        pooling = load_backend(one.backend).backend.info.pooling
        assert one.pooling == pooling


def test_looking_writes_nothing(run, tmp_path):
    before = snapshot(tmp_path)
    report = migrate(run)
    assert snapshot(tmp_path) == before
    files = {entry["path"].rpartition("/")[2]: entry for entry in report["files"]}
    assert files["shard_0.h5"]["version"] == 2
    assert (
        "mixed" in files["shard_0.h5"]["notes"][0] or "resumed" in files["shard_0.h5"]["notes"][0]
    )
    assert files["output_1_ESM.pt"] | {"mtime_ns": 0, "num_bytes": 0} == {
        "path": str(run / "s_protein/output_1_ESM.pt"),
        "num_bytes": 0,
        "mtime_ns": 0,
        "version": 0,
        "generation": "A or C: the original, the fork before v1.0, or proteins of v2.0",
        "kind": "protein",
        "rows": 12,
        "dims": {"protein": 4},
        "precision": "unknown",
        "taken": {"protein": 12},
        "notes": [],
        "error": None,
    }


def test_what_is_refused_is_told_and_the_rest_is_migrated(run, tmp_path):
    bad = run / "s_protein/output_1_ESM.pt"
    bad.write_bytes(bad.read_bytes()[:-100])
    report = migrate(run, to=tmp_path / "new")
    assert report["counts"]["files refused"] == 1
    (entry,) = [entry for entry in report["files"] if entry["error"]]
    assert entry["path"] == str(bad)
    assert "cannot be read" in entry["error"]
    assert_same(read_migrated(tmp_path / "new")["protein"], part_of(PROTEIN, 12, 25))


def test_an_interrupted_migration_goes_on(run, tmp_path):
    target = tmp_path / "new"
    migrate(run, to=target)
    wanted = read_migrated(target)
    report = json.loads((target / REPORT_NAME).read_text())
    (target / REPORT_NAME).write_text(json.dumps(report | {"status": "in progress"}))
    parts = finished_parts(target / "dna") + finished_parts(target / "protein")
    # As if it had been killed before one part, and between another one and its mark.
    parts[0].unlink()
    parts[0].with_name(f"{parts[0].name}.done").unlink()
    parts[-1].with_name(f"{parts[-1].name}.done").unlink()
    kept = {part: part.stat().st_mtime_ns for part in parts[1:-1]}
    migrate(run, to=target)
    found = read_migrated(target)
    for alphabet in wanted:
        assert_same(found[alphabet], wanted[alphabet])
    assert {part: part.stat().st_mtime_ns for part in kept} == kept


def test_a_finished_migration_is_not_done_again(run, tmp_path):
    first = migrate(run, to=tmp_path / "new")
    before = snapshot(tmp_path / "new")
    assert migrate(run, to=tmp_path / "new") == first
    assert snapshot(tmp_path / "new") == before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("counts",), MISSING),
        (("counts", "ids"), "many"),
        (("files", 0, "rows"), None),
        (("status",), "finished"),
        (("schema_version",), 2),
    ],
)
def test_a_report_that_was_changed_is_none(run, tmp_path, place, value):
    document = migrate(run, to=tmp_path / "new")
    (tmp_path / "new" / REPORT_NAME).write_text(json.dumps(change(document, place, value)))
    before = snapshot(tmp_path / "new")
    with pytest.raises(OutputExistsError, match="does not hold an earlier migration"):
        migrate(run, to=tmp_path / "new")
    assert snapshot(tmp_path / "new") == before


def test_other_sources_need_another_directory(run, tmp_path):
    migrate(run, to=tmp_path / "new")
    changed = run / "s_protein/output_1_ESM.pt"
    os.utime(changed, (1, 1))
    with pytest.raises(OutputExistsError, match="another directory"):
        migrate(run, to=tmp_path / "new")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").touch()
    with pytest.raises(OutputExistsError):
        migrate(run, to=tmp_path / "used")


def test_sources_are_not_written_to(run):
    with pytest.raises(UsageError, match="must not change"):
        migrate(run, to=run / "new")


def test_a_migrated_directory_can_be_migrated_with_others(run, tmp_path):
    migrate(run, to=tmp_path / "new")
    rest = old.save(tmp_path / "rest.pt", old.protein_document(part_of(PROTEIN, 25, 30)))
    report = migrate(tmp_path / "new", rest, to=tmp_path / "both")
    assert report["counts"]["files refused"] == 0
    found = read_migrated(tmp_path / "both")
    assert_same(found["dna"], DNA)
    assert_same(found["protein"], PROTEIN)


def test_parts_of_ours_have_nothing_to_migrate(repository):
    report = migrate(repository / "tests/data/part_v3.h5")
    assert "there is nothing to migrate" in report["files"][0]["error"]


def test_the_real_runs(shared, tmp_path):
    for name in ("reference_vanilla_output", "test_with_orfs_refactored"):
        source = shared / "legacy" / name
        config = MigrateConfig(sources=(source,), output_path=tmp_path / name, jobs=1)
        report = migrate_features(config)
        assert report["counts"]["files refused"] == 0
        found = read_migrated(tmp_path / name)
        (dna,) = source.rglob("*_DNABERT_S.pt")
        (protein,) = source.rglob("*_ESM.pt")
        wanted = torch.load(dna, weights_only=True)["data"]
        assert_same(
            found["dna"],
            {each["label"]: np.array(each["mean_representation"], np.float32) for each in wanted},
        )
        wanted = torch.load(protein, weights_only=True)
        vectors = [vector.numpy() for vector in wanted["data"]]
        assert_same(found["protein"], dict(zip(wanted["proteins"], vectors, strict=True)))


# Classifiers

METADATA = ClassifierMetadata("dnabert-s", "esm2", 6, 4, 500)


@pytest.fixture
def state_dict(tmp_path):
    """A classifier as a plain state dict, which tells nothing else."""
    make_classifier(tmp_path / "made.safetensors", 6, 4, 500)
    state, _, _ = read_classifier(tmp_path / "made.safetensors")
    torch.save(state, tmp_path / "500_model.pth")
    return tmp_path / "500_model.pth"


def test_a_classifier_keeps_its_scores_and_gains_metadata(state_dict, tmp_path):
    migrate_classifier(state_dict, tmp_path / "500.safetensors", METADATA)
    before, after = load_classifier(state_dict), load_classifier(tmp_path / "500.safetensors")
    assert (before.metadata, after.metadata) == (None, METADATA)
    features = np.random.default_rng(0).standard_normal((9, 10)).astype(np.float32)
    assert np.array_equal(before.score(features), after.score(features))


def test_a_classifier_of_another_size_is_refused(state_dict, tmp_path):
    wide = ClassifierMetadata("dnabert-s", "esm2", 768, 2560, 500)
    for dry_run in (True, False):
        with pytest.raises(ClassifierError, match=r"wants 10 numbers.*768 \+ 2560"):
            migrate_classifier(state_dict, tmp_path / "x.safetensors", wide, dry_run=dry_run)
    assert not (tmp_path / "x.safetensors").exists()


def test_a_classifier_of_ours_is_left_alone(state_dict, tmp_path):
    with pytest.raises(
        ClassifierError, match=r"is in the current format already; nothing to migrate$"
    ):
        migrate_classifier(tmp_path / "made.safetensors", tmp_path / "x.safetensors", METADATA)
    with pytest.raises(OutputExistsError):
        migrate_classifier(state_dict, tmp_path / "made.safetensors", METADATA)

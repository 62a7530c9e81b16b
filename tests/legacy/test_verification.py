from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from tests import legacy_files as old
from tools.make_demo_weights import DNA_DIM, PROTEIN_DIM
from virnucpro.config import MigrateConfig
from virnucpro.errors import CheckpointError, UsageError
from virnucpro.legacy.verification import _embed
from virnucpro.workflows.migrate import migrate_features


@pytest.fixture(scope="module")
def embedded(demo_weights, tmp_path_factory):
    """A run of v2.0 whose proteins are those of the demonstration model, in float16."""
    random = np.random.default_rng(5)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    sequences = {f"r{n}_chunk_1F1": "".join(random.choice(letters, 40)) for n in range(12)}
    vectors = _embed("esm2", demo_weights["protein_weights"], list(sequences.values()), "cpu")
    frames = dict(zip(sequences, vectors, strict=True))
    directory = tmp_path_factory.mktemp("verified") / "run"
    old.write_fasta(directory / "s_protein.faa", sequences)
    halves = {name: vector.astype(np.float16).astype(np.float32) for name, vector in frames.items()}
    old.write_shard(directory / "esm_v2/shard_0.h5", halves)
    return directory


def verify(source, weights, num_rows=5, to=None):
    config = MigrateConfig(
        sources=(source,),
        output_path=to,
        dna_dim=DNA_DIM,
        protein_dim=PROTEIN_DIM,
        jobs=1,
        verify=num_rows,
        protein_weights=weights["protein_weights"],
        device="cpu",
    )
    return migrate_features(config)


def test_rows_computed_again_agree(embedded, demo_weights):
    verified = verify(embedded, demo_weights)["verified"]["protein"]
    assert verified["rows"] == 5
    assert 0 < verified["largest relative error"] < 0.01


def test_mixed_ids_are_found(embedded, demo_weights, tmp_path):
    run = shutil.copytree(embedded, tmp_path / "run")
    with h5py.File(run / "esm_v2/shard_0.h5", "r+") as file:
        file["embeddings"][:] = np.roll(file["embeddings"][:], 1, axis=0)
    with pytest.raises(CheckpointError, match=r"12 of 12 protein embeddings differ.*do not use"):
        verify(run, demo_weights, 100, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_complete_migration_is_verified(embedded, demo_weights, tmp_path):
    run = shutil.copytree(embedded, tmp_path / "run")
    config = MigrateConfig(
        sources=(run,), output_path=tmp_path / "new", dna_dim=DNA_DIM, protein_dim=PROTEIN_DIM
    )
    assert "verified" not in migrate_features(config)
    (part,) = (tmp_path / "new/protein").glob("part-*.h5")
    written_at = part.stat().st_mtime_ns
    verified = verify(run, demo_weights, to=tmp_path / "new")["verified"]["protein"]
    assert verified["rows"] == 5
    assert part.stat().st_mtime_ns == written_at
    # It is in the report for good.
    again = migrate_features(config)
    assert (again["status"], again["verified"]["protein"]) == ("complete", verified)


def test_mixed_ids_of_a_complete_migration_are_found(embedded, demo_weights, tmp_path):
    run = shutil.copytree(embedded, tmp_path / "run")
    with h5py.File(run / "esm_v2/shard_0.h5", "r+") as file:
        file["embeddings"][:] = np.roll(file["embeddings"][:], 1, axis=0)
    migrate_features(
        MigrateConfig(
            sources=(run,), output_path=tmp_path / "new", dna_dim=DNA_DIM, protein_dim=PROTEIN_DIM
        )
    )
    report = (tmp_path / "new/migration.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"12 of 12 protein embeddings differ"):
        verify(run, demo_weights, 100, tmp_path / "new")
    assert (tmp_path / "new/migration.json").read_bytes() == report


def test_verifying_needs_sequences(embedded, demo_weights):
    with pytest.raises(UsageError, match="give the whole run directory"):
        verify(embedded / "esm_v2", demo_weights)

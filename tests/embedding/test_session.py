"""What predict and embed share: the lock, the models, one pass, the clock."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.config import ComputeConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.loop import EmbeddingJob
from virnucpro.embedding.session import Clock, Model, locked, open_model, run_job
from virnucpro.errors import BackendError, IdentityMismatchError, UsageError, WeightsError
from virnucpro.runtime.devices import make_accelerator
from virnucpro.sequences.frame_store import build_record_store

CPU = ComputeConfig(device="cpu")


@pytest.fixture
def accelerator():
    return make_accelerator(CPU)


@pytest.fixture
def model(accelerator, demo_weights: dict[str, str]) -> Model:
    return open_model(accelerator, "dnabert-s", demo_weights["dna_weights"])


@pytest.fixture
def job(tmp_path: Path, model: Model) -> EmbeddingJob:
    fasta = tmp_path / "records.fa"
    fasta.write_text(">a\nACGTACGT\n>b\nGGCC\n>c\nACGTACGT\n>d\nTTTAAA\n")
    store = build_record_store([str(fasta)], tmp_path / "store", alphabet="dna")
    source = store.sequences()
    return EmbeddingJob(
        name="DNA embeddings",
        backend=model.loaded.backend,
        weights=model.weights,
        source=source,
        rows=unique_rows(source),
        parts_dir=tmp_path / "parts",
        identity=model.make_identity(store.input_digest, "fp32", chunk_length_bp=0),
        batch_tokens=None,
    )


# The lock


def test_a_second_run_is_kept_away(tmp_path: Path) -> None:
    script = (
        "import sys, virnucpro.embedding.session as s\nwith s.locked(s.Path(sys.argv[1])): pass"
    )
    other = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with locked(tmp_path / ".lock"):
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert f"{tmp_path}: another run is going on here" in refused.stderr
    assert subprocess.run(other, check=False).returncode == 0


def test_not_even_one_process_does_two_runs_in_one_place(tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(UsageError, match="another run is going on here; wait for it"),
        locked(tmp_path / ".lock"),
    ):
        pytest.fail("two held the lock")
    with locked(tmp_path / ".lock"):
        pass


# Models


def test_a_model_is_described_and_makes_identities(model: Model, demo_weights) -> None:
    description = model.describe()
    assert description["name"] == "dnabert-s"
    assert description["distribution"] == "virnucpro"
    assert description["weights"] == demo_weights["dna_weights"]
    assert description["embedding_dim"] == 48
    identity = model.make_identity("sha256:11", "bf16", 300)
    assert identity.weights_identity == description["weights_identity"] == model.weights.identity
    assert identity.backend_version == description["version"]
    assert (identity.input_digest, identity.precision) == ("sha256:11", "bf16")
    assert (identity.chunk_length_bp, identity.embedding_dim) == (300, 48)


def test_a_backend_that_knows_no_fp8_computes_in_bf16(accelerator, model, demo_weights) -> None:
    other = open_model(accelerator, "esm2", demo_weights["protein_weights"])
    assert model.make_identity("sha256:11", "fp8", 300).precision == "bf16"
    assert other.make_identity("sha256:11", "fp8", 300).precision == "fp8"


def test_models_that_are_not_to_be_had(accelerator) -> None:
    with pytest.raises(BackendError, match="Did you mean 'dnabert-s'"):
        open_model(accelerator, "dnabert_s", "nowhere")
    with pytest.raises(WeightsError, match="nowhere: no such file or directory"):
        open_model(accelerator, "dnabert-s", "nowhere")


# One pass


def test_a_pass_does_what_is_missing(accelerator, job: EmbeddingJob, caplog) -> None:
    (first,) = run_job(job, CPU, accelerator, None)
    assert first.num_rows == 3
    (part,) = finished_parts(job.parts_dir)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)

    (second,) = run_job(job, CPU, accelerator, None)
    assert second.num_rows == 3
    assert f"set aside as {part.name}.damaged and computed again" in caplog.text
    assert np.array_equal(finished_rows(finished_parts(job.parts_dir)), job.rows)
    (third,) = run_job(job, CPU, accelerator, None)
    assert third.num_rows == 0


def test_parts_may_be_trusted(accelerator, job: EmbeddingJob) -> None:
    run_job(job, CPU, accelerator, None)
    (part,) = finished_parts(job.parts_dir)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    (summary,) = run_job(job, CPU, accelerator, None, trust_parts=True)
    assert summary.num_rows == 0


def test_parts_of_another_run_stop_it(accelerator, job: EmbeddingJob) -> None:
    run_job(job, CPU, accelerator, None)
    before = sorted(job.parts_dir.iterdir())
    other = replace(job, identity=replace(job.identity, precision="bf16"))
    with pytest.raises(IdentityMismatchError, match="precision is bf16 now and was fp32 there"):
        run_job(other, CPU, accelerator, None)
    assert sorted(job.parts_dir.iterdir()) == before


def test_the_clock_keeps_the_stages() -> None:
    clock = Clock()
    with clock.time("one"), clock.time("two"):
        pass
    assert list(clock.stages) == ["two", "one"]
    assert 0 <= clock.stages["two"] <= clock.stages["one"] <= clock.seconds
    assert clock.started_at.utcoffset() is not None

"""A pass: what is missing is embedded, and the parts of another run stop it."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from virnucpro.backend.interface import Encoder
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.config import ComputeConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.estimates import has_room
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.models import open_model
from virnucpro.embedding.passes import gather_features, run_pass, run_passes
from virnucpro.errors import IdentityMismatchError
from virnucpro.runtime.monitoring import PassStatus
from virnucpro.runtime.run import Run, open_run
from virnucpro.sequences.frame_store import build_record_store


@pytest.fixture
def run() -> Iterator[Run]:
    with open_run(ComputeConfig(device="cpu")) as run:
        yield run


@pytest.fixture
def job(tmp_path: Path, demo_weights: dict[str, str]) -> Job:
    fasta = tmp_path / "records.fa"
    fasta.write_text(">a\nACGTACGT\n>b\nGGCC\n>c\nACGTACGT\n>d\nTTTAAA\n")
    store = build_record_store([str(fasta)], tmp_path / "store", alphabet="dna")
    source = store.sequences()
    return Job(
        name="DNA embeddings",
        model=open_model("dnabert-s", demo_weights["dna_weights"]),
        source=source,
        rows=unique_rows(source),
        parts_dir=tmp_path / "parts",
        input_digest=store.input_digest,
        precision="fp32",
        attention="auto",
    )


def test_a_pass_does_what_is_missing(run: Run, job: Job, caplog) -> None:
    (first,) = run_pass(run, job).summaries
    assert first.num_rows == 3
    (part,) = finished_parts(job.parts_dir)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)

    (second,) = run_pass(run, job).summaries
    assert second.num_rows == 3
    assert f"set aside as {part.name}.damaged and computed again" in caplog.text
    assert np.array_equal(finished_rows(finished_parts(job.parts_dir)), job.rows)
    (third,) = run_pass(run, job).summaries
    assert third.num_rows == 0


def test_a_pass_knows_its_parts(run: Run, job: Job) -> None:
    first = run_pass(run, replace(job, rows=job.rows[:1]))
    second = run_pass(run, job)
    assert second.parts == finished_parts(job.parts_dir)
    assert len(second.parts) == 2
    assert first.parts == second.parts[:1]
    assert run_pass(run, job).parts == second.parts
    # Parts that appear later are not among those of the pass.
    assert first.embeddings.num_rows == 1


def test_parts_may_be_trusted(run: Run, job: Job) -> None:
    run_pass(run, job)
    (part,) = finished_parts(job.parts_dir)
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    (summary,) = run_pass(run, replace(job, trust_parts=True)).summaries
    assert summary.num_rows == 0


def test_parts_of_another_run_stop_it(run: Run, job: Job) -> None:
    run_pass(run, job)
    before = sorted(job.parts_dir.iterdir())
    other = replace(job, precision="bf16")
    with pytest.raises(IdentityMismatchError, match="precision is bf16 now and was fp32 there"):
        run_pass(run, other)
    assert sorted(job.parts_dir.iterdir()) == before


def test_equal_sequences_share_an_embedding(run: Run, job: Job) -> None:
    done = run_pass(run, job)
    rows = np.array([2, 0, 3])
    embeddings = done.gather(rows)
    assert np.array_equal(embeddings[0], embeddings[1])
    assert not np.array_equal(embeddings[0], embeddings[2])
    assert np.array_equal(gather_features([done, done], rows), np.hstack([embeddings, embeddings]))


def test_a_row_that_failed_has_no_embedding_nor_has_its_equal(run: Run, job: Job) -> None:
    done = run_pass(run, job)
    failed = replace(done, summaries=[replace(done.summaries[0], failed_rows=[0])])
    assert failed.has(np.arange(4)).tolist() == [False, True, False, True]
    assert done.has(np.arange(4)).all()


@pytest.mark.parametrize("is_finished", [False, True])
def test_the_next_model_is_loaded_while_the_first_embeds(
    run: Run, job: Job, tmp_path: Path, monkeypatch, is_finished: bool
) -> None:
    backend = type(job.model.backend)
    load_encoder = backend.load_encoder
    threads = []

    def load(self: object, *args: object, **how: object) -> Encoder:
        threads.append(threading.current_thread().name.partition("_")[0])
        return load_encoder(self, *args, **how)

    monkeypatch.setattr(backend, "load_encoder", load)
    then = replace(job, name="again", parts_dir=tmp_path / "others")
    if is_finished:
        run_pass(run, then)
    first, second = run_passes(run, [job, then])
    assert threads == ["MainThread", "MainThread" if is_finished else "loading"]
    rows = np.arange(4)
    assert np.array_equal(first.gather(rows), second.gather(rows))


@pytest.mark.slow
def test_passes_share_their_workers(job: Job, tmp_path: Path) -> None:
    then = replace(job, name="again", parts_dir=tmp_path / "others", batch_tokens=1)
    workers = []

    def look(update: PassStatus) -> None:
        workers.append((update.name, {child.pid for child in multiprocessing.active_children()}))

    with open_run(ComputeConfig(device="cpu", dataloader_workers=2), on_progress=look) as run:
        passes = run_passes(run, [job, then])
    assert [name for name, _ in workers] == ["DNA embeddings", *["again"] * 3]
    assert all(pids == workers[0][1] for _, pids in workers)
    assert len(workers[0][1]) == 2
    assert not multiprocessing.active_children()
    assert np.array_equal(*(each.gather(np.arange(4)) for each in passes))


@pytest.mark.parametrize(
    ("num_bytes", "precision", "device", "spare_bytes", "fits"),
    [
        (5_700_000_000, "bf16", "cuda", 18e9, True),
        (5_700_000_000, "bf16", "cuda", 17e9, False),
        (5_700_000_000, "fp8", "cuda", 18e9, True),
        (5_700_000_000, "fp32", "cuda", 22e9, False),
        (5_700_000_000, "fp32", "cpu", 0, False),
        (30_000_000, "fp32", "cpu", 0, True),
        (30_000_000, "fp32", "cuda", 0, False),
    ],
)
def test_a_second_model_is_loaded_only_where_there_is_much_room(
    tmp_path: Path, job: Job, num_bytes, precision, device, spare_bytes, fits
) -> None:
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.truncate(num_bytes)
    model = replace(job.model, weights=replace(job.model.weights, path=path))
    assert has_room(model, precision, torch.device(device), spare_bytes) == fits

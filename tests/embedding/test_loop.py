"""The loop in one process: every row once, in parts that an undisturbed run would have written."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from virnucpro.backend.testing import ToyBackend, write_toy_weights
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import Identity, finished_parts, finished_rows
from virnucpro.config import ComputeConfig
from virnucpro.embedding.batches import (
    Batches,
    ClaimedBatches,
    measure_costs,
    plan_batches,
    unique_rows,
)
from virnucpro.embedding.loader import make_loader
from virnucpro.embedding.loop import EmbeddingJob, run_embedding
from virnucpro.embedding.session import run_job
from virnucpro.errors import MemoryExhaustedError, NonFiniteEmbeddingError, UsageError
from virnucpro.runtime.devices import choose_precision, make_accelerator
from virnucpro.runtime.monitoring import PassStatus
from virnucpro.sequences.frame_store import build_record_store

NUM_RECORDS = 300
CPU = ComputeConfig(device="cpu")


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """One on the CPU, whatever other tests of this process compute on."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield make_accelerator(CPU)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def job(tmp_path: Path) -> EmbeddingJob:
    """Random sequences of very different lengths, every tenth of them an earlier one."""
    letters = random.Random(0)
    sequences: list[str] = []
    for number in range(NUM_RECORDS):
        new = "".join(letters.choices("ACGT", k=letters.randint(1, 400)))
        sequences.append(sequences[number // 2] if number % 10 == 9 else new)
    fasta = tmp_path / "records.fa"
    fasta.write_text("".join(f">{number}\n{text}\n" for number, text in enumerate(sequences)))
    source = build_record_store([str(fasta)], tmp_path / "store", alphabet="dna").sequences()
    backend = ToyBackend()
    weights = backend.open_weights(str(write_toy_weights(tmp_path / "toy.safetensors")))
    identity = Identity(
        input_digest="sha256:11",
        backend="toy",
        backend_version="1.0",
        weights_identity=weights.identity,
        precision="fp32",
        chunk_length_bp=0,
        pooling=backend.info.pooling,
        embedding_dim=weights.embedding_dim,
    )
    return EmbeddingJob(
        name="toy embeddings",
        backend=backend,
        weights=weights,
        source=source,
        rows=unique_rows(source),
        parts_dir=tmp_path / "parts",
        identity=identity,
        batch_tokens=1_000,
    )


def stored_rows(job: EmbeddingJob) -> list[int]:
    """Return the rows in all parts, one that is in two parts twice."""
    parts = finished_parts(job.parts_dir)
    return sorted(row for part in parts for row in finished_rows([part]).tolist())


def stored_embeddings(job: EmbeddingJob) -> np.ndarray:
    return EmbeddingReader(finished_parts(job.parts_dir)).gather(job.rows)


def embed_alone(job: EmbeddingJob) -> np.ndarray:
    """Embed one row at a time with the backend itself."""
    collator = job.backend.load_collator(job.weights)
    encoder = job.backend.load_encoder(
        job.weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
    )
    with torch.inference_mode():
        batches = (collator(np.array([row]), [job.source[row]]) for row in job.rows.tolist())
        return torch.cat([encoder(batch) for batch in batches]).numpy()


def plan(job: EmbeddingJob) -> Batches:
    assert job.batch_tokens is not None
    costs = measure_costs(job.backend.token_cost, job.source, job.rows)
    return plan_batches(job.rows, costs, job.batch_tokens)


class Interrupts:
    """A listener that presses Ctrl-C after some batches."""

    def __init__(self, num_batches: int) -> None:
        self.num_left = num_batches

    def __call__(self, update: PassStatus) -> None:
        self.num_left -= 1
        if self.num_left == 0:
            raise KeyboardInterrupt


def test_every_distinct_row_is_embedded_once(accelerator, job: EmbeddingJob) -> None:
    summary = run_embedding(accelerator, job, CPU)
    assert stored_rows(job) == job.rows.tolist()
    assert len(job.rows) == NUM_RECORDS * 0.9
    assert summary.num_rows == len(job.rows)
    assert summary.num_tokens == sum(len(job.source[row]) for row in job.rows)
    np.testing.assert_allclose(stored_embeddings(job), embed_alone(job), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 130, 100_000])
def test_no_budget_loses_or_doubles_rows(accelerator, job, batch_tokens: int) -> None:
    job = replace(job, batch_tokens=batch_tokens)
    run_embedding(accelerator, job, CPU)
    assert stored_rows(job) == job.rows.tolist()


def test_the_loader_keeps_batches_of_varying_size(accelerator, job: EmbeddingJob) -> None:
    claims = ClaimedBatches(plan(job), itertools.count().__next__)
    collator = job.backend.load_collator(job.weights)
    loader = make_loader(job.source, collator, claims, CPU, accelerator.device)
    # Accelerate drops rows where a sampler of such batches has this attribute.
    assert not hasattr(loader.batch_sampler, "batch_size")
    loaded = [batch.rows.tolist() for batch in loader]
    assert loaded == [batch.tolist() for batch in plan(job)]
    assert len({len(rows) for rows in loaded}) > 3


def test_workers_change_nothing(accelerator, job: EmbeddingJob, tmp_path: Path) -> None:
    run_embedding(accelerator, job, CPU)
    other = replace(job, parts_dir=tmp_path / "other")
    run_embedding(accelerator, other, replace(CPU, dataloader_workers=2))
    ours, theirs = finished_parts(job.parts_dir), finished_parts(other.parts_dir)
    assert [path.read_bytes() for path in theirs] == [path.read_bytes() for path in ours]


def test_finished_parts_are_not_done_again(accelerator, job: EmbeddingJob) -> None:
    run_embedding(accelerator, job, CPU)
    updates: list[PassStatus] = []
    assert run_embedding(accelerator, job, CPU, updates.append).num_rows == 0
    assert len(finished_parts(job.parts_dir)) == 1
    assert updates == []


def test_a_resumed_run_is_bitwise_the_undisturbed_one(accelerator, job, tmp_path: Path) -> None:
    run_embedding(accelerator, job, CPU)
    other = replace(job, parts_dir=tmp_path / "other")
    for num_batches in (3, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            run_embedding(accelerator, other, CPU, Interrupts(num_batches))
    _, lost, _ = finished_parts(other.parts_dir)
    Path(f"{lost}.done").unlink()
    lost.unlink()
    run_embedding(accelerator, other, CPU)
    assert len(finished_parts(other.parts_dir)) == 3
    assert stored_rows(other) == job.rows.tolist()
    np.testing.assert_array_equal(stored_embeddings(other), stored_embeddings(job))


def test_an_interrupted_run_keeps_what_it_had(accelerator, job: EmbeddingJob) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_embedding(accelerator, job, CPU, Interrupts(4))
    batches = plan(job)
    assert stored_rows(job) == sorted(row for index in range(4) for row in batches[index].tolist())


def test_progress_adds_up(accelerator, job: EmbeddingJob) -> None:
    updates: list[PassStatus] = []
    run_embedding(accelerator, job, CPU, updates.append)
    assert len(updates) == len(plan(job))
    assert {update.name for update in updates} == {"toy embeddings"}
    assert {update.total_cost for update in updates} == {
        sum(len(job.source[row]) for row in job.rows)
    }
    assert {update.total_rows for update in updates} == {len(job.rows)}
    done = [(update.cost, update.num_rows) for update in updates]
    assert done == sorted(set(done))
    assert done[-1] == (updates[-1].total_cost, updates[-1].total_rows)


def test_a_row_that_becomes_nan_is_named(accelerator, job: EmbeddingJob, tmp_path: Path) -> None:
    row = int(job.rows[17])
    sequence = job.source[row]
    tensors = load_file(job.weights.path)
    first = ord(sequence[0]) - ord("A") + 1
    # Nothing stands before a sequence's first letter; only there this vector is used.
    tensors["pairs.weight"][first] = torch.nan
    starting_alike = [other for other in job.rows if job.source[other][0] == sequence[0]]
    save_file(tensors, tmp_path / "nan.safetensors")
    weights = job.backend.open_weights(str(tmp_path / "nan.safetensors"))
    with pytest.raises(NonFiniteEmbeddingError, match="toy in fp32 returned NaN") as caught:
        run_embedding(accelerator, replace(job, weights=weights), CPU)
    named = int(str(caught.value).partition("first row: ")[2].partition(")")[0])
    assert named in starting_alike
    assert finished_parts(job.parts_dir) == []


@pytest.mark.parametrize(
    ("asked", "chosen"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_precision_on_a_cpu(accelerator, asked: str, chosen: str) -> None:
    assert choose_precision(asked, accelerator) == chosen


def test_fp8_is_refused_on_a_cpu(accelerator) -> None:
    with pytest.raises(UsageError, match="Hopper generation or newer, found cpu; use bf16"):
        choose_precision("fp8", accelerator)


def test_the_precision_is_what_the_model_computes_in(accelerator, job: EmbeddingJob) -> None:
    run_embedding(accelerator, job, CPU)
    bf16 = replace(
        job,
        identity=replace(job.identity, precision="bf16"),
        parts_dir=job.parts_dir.with_name("bf16"),
    )
    run_embedding(accelerator, bf16, CPU)
    deviation = np.abs(stored_embeddings(bf16) - stored_embeddings(job)).max()
    assert 1e-4 < deviation < 1e-2


def test_a_gpu_that_is_not_there() -> None:
    message = r"device cuda:99: this machine shows \d+ CUDA GPUs; choose another, or the device cpu"
    with pytest.raises(UsageError, match=message):
        make_accelerator(ComputeConfig(device="cuda:99"))


@pytest.mark.gpu
def test_one_process_computes_on_one_device(accelerator) -> None:
    with pytest.raises(UsageError, match="already computes on cpu; start a new process"):
        make_accelerator(ComputeConfig(device="cuda"))


# Out of memory


class SmallDevice(ToyBackend):
    """A toy whose device holds so many tokens; a larger batch fails as CUDA does."""

    num_tokens = 300

    def load_encoder(self, weights, **how):
        encoder = super().load_encoder(weights, **how)

        def encode(batch):
            if len(batch.rows) * batch.max_length > self.num_tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return encoder(batch)

        return encode


def test_batches_that_do_not_fit_are_split(accelerator, job: EmbeddingJob, tmp_path, caplog):
    run_embedding(accelerator, job, CPU)
    device = SmallDevice()
    device.num_tokens = max(len(job.source[row]) for row in job.rows)
    small = replace(job, backend=device, parts_dir=tmp_path / "small")
    summary = run_embedding(accelerator, small, CPU)
    assert summary.failed_rows == ()
    assert summary.budget_tokens < 1_000
    assert stored_rows(small) == stored_rows(job)
    np.testing.assert_allclose(stored_embeddings(small), stored_embeddings(job), atol=1e-6)
    assert "process 0 on cpu ran out of memory on 2 sequences of up to" in caplog.text
    # It learns: most of the later batches are split before they fail.
    assert caplog.text.count("ran out of memory") < len(plan(job)) / 2


def test_what_does_not_fit_alone_is_reported(accelerator, job: EmbeddingJob, caplog) -> None:
    small = replace(job, backend=SmallDevice())
    summary = run_embedding(accelerator, small, CPU)
    too_long = [row for row in job.rows.tolist() if len(job.source[row]) > 300]
    assert sorted(summary.failed_rows) == too_long
    assert caplog.text.count("has not the memory for a single sequence") == len(too_long)
    assert stored_rows(small) == sorted(set(job.rows.tolist()) - set(too_long))


def test_nothing_fits(accelerator, job: EmbeddingJob) -> None:
    device = SmallDevice()
    device.num_tokens = 0
    with pytest.raises(MemoryExhaustedError, match="not one of 270 sequences fits the memory of"):
        run_job(replace(job, backend=device), CPU, accelerator, None)


def test_other_errors_are_not_taken_for_it(accelerator, job: EmbeddingJob) -> None:
    class Broken(ToyBackend):
        def load_encoder(self, weights, **how):
            def encode(batch):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

            return encode

    with pytest.raises(RuntimeError, match="shapes cannot"):
        run_embedding(accelerator, replace(job, backend=Broken()), CPU)


def test_weights_that_do_not_fit(accelerator, job: EmbeddingJob) -> None:
    class Full(ToyBackend):
        def load_encoder(self, weights, **how):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB")

    with pytest.raises(
        MemoryExhaustedError, match=r"toy\.safetensors do not fit the memory of cpu"
    ):
        run_embedding(accelerator, replace(job, backend=Full()), CPU)

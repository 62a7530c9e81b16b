"""The loop in one process: every row once, in parts that an undisturbed run would have written."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from virnucpro.backend.interface import Weights
from virnucpro.backend.registry import LoadedBackend
from virnucpro.backend.testing import ToyBackend, write_toy_weights
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.config import ComputeConfig
from virnucpro.embedding.batches import (
    Batches,
    ClaimedBatches,
    measure_costs,
    plan_batches,
    unique_rows,
)
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.loader import Loader
from virnucpro.embedding.models import Model
from virnucpro.embedding.passes import run_pass
from virnucpro.errors import (
    BackendError,
    MemoryExhaustedError,
    NonFiniteEmbeddingError,
    ProcessError,
    UsageError,
)
from virnucpro.runtime.devices import make_accelerator
from virnucpro.runtime.monitoring import PassStatus, ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.sequences.frame_store import build_record_store

NUM_RECORDS = 300
CPU = ComputeConfig(device="cpu")


@pytest.fixture
def run() -> Iterator[Run]:
    """One on the CPU, whatever other tests of this process compute on."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with open_run(CPU) as run:
        yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def with_backend(job: Job, backend: ToyBackend) -> Job:
    return replace(job, model=replace(job.model, loaded=replace(job.model.loaded, backend=backend)))


def embed(run: Run, job: Job, listener: ProgressListener | None = None) -> PassStatus:
    run.on_progress = listener
    (summary,) = run_pass(run, job).summaries
    return summary


@pytest.fixture
def job(tmp_path: Path) -> Job:
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
    return Job(
        name="toy embeddings",
        model=Model(LoadedBackend(backend, "toy", "virnucpro", "1.0"), weights),
        source=source,
        rows=unique_rows(source),
        parts_dir=tmp_path / "parts",
        input_digest="sha256:11",
        precision="fp32",
        attention="auto",
        batch_tokens=1_000,
    )


def stored_rows(job: Job) -> list[int]:
    """Return the rows in all parts, one that is in two parts twice."""
    parts = finished_parts(job.parts_dir)
    return sorted(row for part in parts for row in finished_rows([part]).tolist())


def stored_embeddings(job: Job) -> np.ndarray:
    return EmbeddingReader(finished_parts(job.parts_dir)).gather(job.rows)


def embed_alone(job: Job) -> np.ndarray:
    """Embed one row at a time with the backend itself."""
    collator = job.model.load_collator()
    encoder = job.model.load_encoder(torch.device("cpu"), "fp32", "auto")
    with torch.inference_mode():
        batches = (collator(np.array([row]), [job.source[row]]) for row in job.rows.tolist())
        return torch.cat([encoder(batch) for batch in batches]).numpy()


def plan(job: Job) -> Batches:
    assert job.batch_tokens is not None
    costs = measure_costs(job.model.backend, job.source, job.rows)
    return plan_batches(job.rows, costs, job.batch_tokens)


class Interrupts:
    """A listener that presses Ctrl-C after some batches."""

    def __init__(self, num_batches: int) -> None:
        self.num_left = num_batches

    def __call__(self, update: PassStatus) -> None:
        self.num_left -= 1
        if self.num_left == 0:
            raise KeyboardInterrupt


def test_every_distinct_row_is_embedded_once(run: Run, job: Job) -> None:
    summary = embed(run, job)
    assert stored_rows(job) == job.rows.tolist()
    assert len(job.rows) == NUM_RECORDS * 0.9
    assert summary.num_rows == len(job.rows)
    assert summary.num_tokens == sum(len(job.source[row]) for row in job.rows)
    np.testing.assert_allclose(stored_embeddings(job), embed_alone(job), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 130, 100_000])
def test_no_budget_loses_or_doubles_rows(run, job, batch_tokens: int) -> None:
    job = replace(job, batch_tokens=batch_tokens)
    embed(run, job)
    assert stored_rows(job) == job.rows.tolist()


@pytest.mark.parametrize("numbers", [[7, 8], [0, 1, -5], [0, 1, 1], [0, 10**18], []])
def test_what_nobody_claims_is_embedded_all_the_same(run, job, numbers, monkeypatch) -> None:
    # The store that counts is open to others: they can make it skip, repeat, or stop.
    counted = itertools.chain(numbers, itertools.repeat(sys.maxsize))
    monkeypatch.setattr(run, "make_counter", lambda: counted.__next__)
    summary = embed(run, job)
    assert stored_rows(job) == job.rows.tolist()
    assert summary.num_rows == len(job.rows)
    assert summary.state == "done"


def test_the_loader_keeps_batches_of_varying_size(run: Run, job: Job) -> None:
    claims = ClaimedBatches(plan(job), itertools.count().__next__)
    loader = Loader([job], CPU, run.device)
    # Accelerate drops rows where a sampler of such batches has this attribute.
    assert not hasattr(loader.sampler, "batch_size")
    loaded = [batch.rows.tolist() for batch in loader.load(job, claims)]
    assert loaded == [batch.tolist() for batch in plan(job)]
    assert len({len(rows) for rows in loaded}) > 3


@pytest.mark.slow
def test_workers_change_nothing(run: Run, job: Job, tmp_path: Path) -> None:
    embed(run, job)
    other = replace(job, parts_dir=tmp_path / "other")
    run.config = replace(CPU, dataloader_workers=2)
    embed(run, other)
    ours, theirs = finished_parts(job.parts_dir), finished_parts(other.parts_dir)
    assert [path.read_bytes() for path in theirs] == [path.read_bytes() for path in ours]


class Deadly:
    """A collator that the system kills, as it does where memory runs out."""

    def __call__(self, rows, sequences):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_death_of_a_worker_is_explained(run: Run, job: Job) -> None:
    class Killed(ToyBackend):
        def load_collator(self, weights):
            return Deadly()

    run.config = replace(CPU, dataloader_workers=1)
    with pytest.raises(ProcessError, match=r"processes that tokenize do not work "):
        embed(run, with_backend(job, Killed()))


def test_finished_parts_are_not_done_again(run: Run, job: Job) -> None:
    embed(run, job)
    updates: list[PassStatus] = []
    assert embed(run, job, updates.append).num_rows == 0
    assert len(finished_parts(job.parts_dir)) == 1
    assert updates == []


def test_a_resumed_run_is_bitwise_the_undisturbed_one(run, job, tmp_path: Path) -> None:
    embed(run, job)
    other = replace(job, parts_dir=tmp_path / "other")
    for num_batches in (3, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            embed(run, other, Interrupts(num_batches))
    _, lost, _ = finished_parts(other.parts_dir)
    Path(f"{lost}.done").unlink()
    lost.unlink()
    embed(run, other)
    assert len(finished_parts(other.parts_dir)) == 3
    assert stored_rows(other) == job.rows.tolist()
    np.testing.assert_array_equal(stored_embeddings(other), stored_embeddings(job))


def test_an_interrupted_run_keeps_what_it_had(run: Run, job: Job) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(run, job, Interrupts(4))
    batches = plan(job)
    assert stored_rows(job) == sorted(row for index in range(4) for row in batches[index].tolist())


def test_progress_adds_up(run: Run, job: Job) -> None:
    updates: list[PassStatus] = []
    embed(run, job, updates.append)
    assert len(updates) == len(plan(job))
    assert {update.name for update in updates} == {"toy embeddings"}
    assert {update.total_cost for update in updates} == {
        sum(len(job.source[row]) for row in job.rows)
    }
    assert {update.total_rows for update in updates} == {len(job.rows)}
    done = [(update.cost, update.num_rows) for update in updates]
    assert done == sorted(set(done))
    assert done[-1] == (updates[-1].total_cost, updates[-1].total_rows)


def test_a_row_that_becomes_nan_is_named(run: Run, job: Job, tmp_path: Path) -> None:
    row = int(job.rows[17])
    sequence = job.source[row]
    tensors = load_file(job.model.weights.path)
    first = ord(sequence[0]) - ord("A") + 1
    # Nothing stands before a sequence's first letter; only there this vector is used.
    tensors["pairs.weight"][first] = torch.nan
    starting_alike = [other for other in job.rows if job.source[other][0] == sequence[0]]
    save_file(tensors, tmp_path / "nan.safetensors")
    weights = job.model.backend.open_weights(str(tmp_path / "nan.safetensors"))
    with pytest.raises(NonFiniteEmbeddingError, match="toy in fp32 returned NaN") as caught:
        embed(run, replace(job, model=replace(job.model, weights=weights)))
    named = int(str(caught.value).partition("first row: ")[2].partition(")")[0])
    assert named in starting_alike
    assert finished_parts(job.parts_dir) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda vectors: vectors.half(), r"\((\d+), 16\) in torch.float16, and \(\1, 16\)"),
        (lambda vectors: vectors[:, :4], r"\((\d+), 4\) in torch.float32, and \(\1, 16\)"),
        (lambda vectors: vectors[0], r"\(16,\) in torch.float32, and \(\d+, 16\)"),
        (lambda vectors: torch.cat([vectors, vectors]), r"in torch.float32, and \(\d+, 16\)"),
    ],
)
def test_other_embeddings_than_the_interface_wants_are_refused(
    run: Run, job: Job, change: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    class Backend(ToyBackend):
        def load_encoder(self, *args: Any, **settings: Any) -> Any:
            encoder = super().load_encoder(*args, **settings)
            return lambda batch: change(encoder(batch))

    with pytest.raises(BackendError, match=f"backend toy returned embeddings .* {found}"):
        embed(run, with_backend(job, Backend()))
    assert finished_parts(job.parts_dir) == []


def test_a_collator_that_workers_cannot_get_is_named(job: Job) -> None:
    class Backend(ToyBackend):
        def load_collator(self, weights: Weights) -> Any:
            return lambda rows, sequences: None

    compute = replace(CPU, dataloader_workers=1)
    loader = Loader([with_backend(job, Backend())], compute, torch.device("cpu"))
    with pytest.raises(BackendError, match=r"collator of backend toy cannot be pickled \(Can't"):
        loader.start_workers()


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch._replace(rows=batch.rows[::-1]),
        lambda batch: batch._replace(rows=np.arange(len(batch.rows))),
        lambda batch: batch._replace(rows=None),
        tuple,
    ],
)
def test_other_batches_than_the_claimed_ones_are_refused(
    run: Run, job: Job, change: Callable[[Any], Any]
) -> None:
    class Backend(ToyBackend):
        def load_collator(self, weights: Weights) -> Any:
            collator = super().load_collator(weights)
            return lambda *batch: change(collator(*batch))

    with pytest.raises(BackendError, match=r"the collator of backend toy returned .* was expected"):
        embed(run, with_backend(job, Backend()))
    assert finished_parts(job.parts_dir) == []


@pytest.mark.parametrize(
    ("asked", "chosen"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_precision_on_a_cpu(run, asked: str, chosen: str) -> None:
    with open_run(replace(CPU, precision=asked)) as other:
        assert other.precision == chosen


def test_fp8_is_refused_on_a_cpu(run) -> None:
    with pytest.raises(UsageError, match="Hopper generation or newer, found cpu; use bf16"):
        open_run(replace(CPU, precision="fp8")).__enter__()


def test_the_precision_is_what_the_model_computes_in(run: Run, job: Job) -> None:
    embed(run, job)
    bf16 = replace(job, precision="bf16", parts_dir=job.parts_dir.with_name("bf16"))
    embed(run, bf16)
    deviation = np.abs(stored_embeddings(bf16) - stored_embeddings(job)).max()
    assert 1e-4 < deviation < 1e-2


def test_a_gpu_that_is_not_there() -> None:
    message = r"device cuda:99: this machine shows \d+ CUDA GPUs; choose another, or the device cpu"
    with pytest.raises(UsageError, match=message):
        make_accelerator(ComputeConfig(device="cuda:99"))


@pytest.mark.gpu
def test_one_process_computes_on_one_device(run) -> None:
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


def test_batches_that_do_not_fit_are_split(run: Run, job: Job, tmp_path, caplog):
    embed(run, job)
    device = SmallDevice()
    device.num_tokens = max(len(job.source[row]) for row in job.rows)
    small = replace(with_backend(job, device), parts_dir=tmp_path / "small")
    summary = embed(run, small)
    assert summary.failed_rows == []
    assert summary.budget_tokens < 1_000
    assert stored_rows(small) == stored_rows(job)
    np.testing.assert_allclose(stored_embeddings(small), stored_embeddings(job), atol=1e-6)
    assert "process 0 on cpu ran out of memory on 2 sequences of up to" in caplog.text
    # It learns: most of the later batches are split before they fail.
    assert caplog.text.count("ran out of memory") < len(plan(job)) / 2


def test_what_does_not_fit_alone_is_reported(run: Run, job: Job, caplog) -> None:
    small = with_backend(job, SmallDevice())
    summary = embed(run, small)
    too_long = [row for row in job.rows.tolist() if len(job.source[row]) > 300]
    assert sorted(summary.failed_rows) == too_long
    assert caplog.text.count("lacks the memory for a single sequence") == len(too_long)
    assert stored_rows(small) == sorted(set(job.rows.tolist()) - set(too_long))


def test_nothing_fits(run: Run, job: Job) -> None:
    device = SmallDevice()
    device.num_tokens = 0
    with pytest.raises(MemoryExhaustedError, match="none of 270 sequences fits the memory of"):
        embed(run, with_backend(job, device))


def test_other_errors_are_not_taken_for_it(run: Run, job: Job) -> None:
    class Broken(ToyBackend):
        def load_encoder(self, weights, **how):
            def encode(batch):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

            return encode

    with pytest.raises(RuntimeError, match="shapes cannot"):
        embed(run, with_backend(job, Broken()))


def test_weights_that_do_not_fit(run: Run, job: Job) -> None:
    class Full(ToyBackend):
        def load_encoder(self, weights, **how):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB")

    with pytest.raises(
        MemoryExhaustedError, match=r"toy\.safetensors do not fit the memory of cpu"
    ):
        embed(run, with_backend(job, Full()))

"""Pass: what one model did over one source, and the story of how it is done.

Shapes: n rows, E numbers in an embedding, D numbers in the embeddings of several models.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

from virnucpro.backend.arrays import BoolArray, Float32Array, Int64Array
from virnucpro.backend.interface import Encoder
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.finished_work import collect_parts
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.embedding.batches import Batches, ClaimedBatches, measure_costs, plan_batches
from virnucpro.embedding.budgets import BudgetKey, default_batch_tokens, read_budget
from virnucpro.embedding.compiling import compile_layers
from virnucpro.embedding.estimates import has_room
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.loader import Loader
from virnucpro.embedding.loop import Loop
from virnucpro.errors import MemoryExhaustedError, count, count_who
from virnucpro.runtime.devices import (
    count_affordable,
    device_name,
    explaining_memory,
    measure_free_memory,
)
from virnucpro.runtime.monitoring import PassStatus, describe_speed
from virnucpro.runtime.run import Run

logger = logging.getLogger(__name__)

# A sixteenth of a full batch, because the probe itself must fit.
_PROBE_TOKENS = 2_048
# A margin: the probe does not show how batches of many shapes fragment the memory.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Pass:
    """What one model did over one source of sequences.

    Attributes:
        job: What was to be embedded.
        summaries: What each process did, by rank.
        parts: The finished parts. A network file system may list others for a while.
    """

    job: Job
    summaries: list[PassStatus]
    parts: list[Path]

    @property
    def failed_rows(self) -> list[int]:
        """The rows that no device had the memory for."""
        return [row for summary in self.summaries for row in summary.failed_rows]

    def has(self, rows: Int64Array) -> BoolArray:
        """Return bool (n,): which of `rows` have an embedding."""
        rows = self.job.source.representatives[rows]
        # The job's rows are sorted, and may be a part of the source's.
        left, right = (np.searchsorted(self.job.rows, rows, side) for side in ("left", "right"))
        # A row that was not in the job, or that did not fit the memory, has no embedding.
        return (left < right) & ~np.isin(rows, self.failed_rows)

    def gather(self, rows: Int64Array) -> Float32Array:
        """Return float32 (n, E), the embeddings of `rows` in their order.

        Raises:
            CheckpointError: An embedding is missing, or a part cannot be read.
        """
        return self.embeddings.gather(self.job.source.representatives[rows])

    def gather_into(self, into: Float32Array | Sequence[Float32Array], rows: Int64Array) -> None:
        """Read the embeddings of `rows` into the arrays float32 (E,) of `into`, one for each row.

        Raises:
            CheckpointError: As `gather`.
        """
        self.embeddings.gather_into(into, self.job.source.representatives[rows])

    @cached_property
    def embeddings(self) -> EmbeddingReader:
        """The reader of the finished parts."""
        return EmbeddingReader(self.parts)


def gather_features(passes: Sequence[Pass], rows: Int64Array) -> Float32Array:
    """Return float32 (n, D): the embeddings of `rows` by all passes, side by side.

    Raises:
        CheckpointError: An embedding is missing, or a part cannot be read.
    """
    dims = [each.embeddings.embedding_dim for each in passes]
    features_ND = np.empty((len(rows), sum(dims)), np.float32)
    columns_of_passes = np.split(features_ND, np.cumsum(dims)[:-1], axis=1)
    for each, columns_NE in zip(passes, columns_of_passes, strict=True):
        each.gather_into(columns_NE, rows)
    return features_ND


def run_passes(run: Run, jobs: Sequence[Job]) -> list[Pass]:
    """Run the passes of the jobs one after the other; see `run_pass`.

    While one computes, the weights of the next one are loaded if there is room for both. The same
    workers tokenize for all of them.

    Raises:
        VirnucproError: As `run_pass`.
    """
    loader = Loader(jobs, run.config, run.device)
    return [_run_pass(run, job, then, loader) for job, then in zip_longest(jobs, jobs[1:])]


def run_pass(run: Run, job: Job) -> Pass:
    """Embed every row of the job that is in no finished part yet, and return the pass.

    Every process of the launch calls this, and all return when all rows are done.

    Raises:
        IdentityMismatchError: The directory holds parts of another run.
        MemoryExhaustedError: The weights, or every single sequence, exceed the device's memory.
        NonFiniteEmbeddingError: The encoder returned NaN or infinity.
        UsageError: `--compile on` was given, and compiling fails.
    """
    return run_passes(run, [job])[0]


def _run_pass(run: Run, job: Job, then: Job | None, loader: Loader) -> Pass:
    with run.stage(job.name):
        found = None
        if run.is_main:
            # Only one process may set damaged parts aside: two would rename the same file.
            found = collect_parts(job.parts_dir, job.identity, full=not job.trust_parts)
        # All must know the same parts, or their plans differ. A network file system may list others
        # to each machine, and parts that a process writes meanwhile are not among these.
        parts = run.share(found)
        finished = finished_rows(parts)
        status = PassStatus(job.name)
        own: list[Path] = []
        # A pass that is finished loads no weights, so a resumed run comes here in moments.
        if len(np.setdiff1d(job.rows, finished)):
            own = _embed_rest(run, job, finished, status, then, loader)
        summaries, written = zip(*run.gather((status, own)), strict=True)
        done = Pass(job, list(summaries), sorted(chain(parts, *written)))
        # A pass that an earlier run has finished has no speed.
        if any(summary.loop_seconds for summary in done.summaries):
            logger.info("%s", describe_speed(done.summaries))
    if done.failed_rows and not done.parts:
        raise MemoryExhaustedError(
            f"{job.name}: none of {count(len(done.failed_rows), 'sequence')} fits the memory of "
            f"{run.device}; use a device with more memory, or smaller weights"
        )
    return done


def _embed_rest(
    run: Run, job: Job, finished: Int64Array, status: PassStatus, then: Job | None, loader: Loader
) -> list[Path]:
    """Embed the rows that are not in `finished`, count them, and return this process's parts."""
    # Before loading, which may take minutes, so that the monitor shows what this process does.
    run.monitor.begin_pass(status)
    # Of all rows, finished ones too: the plan must be that of the undisturbed run.
    costs = measure_costs(job.model.backend, job.source, job.rows)
    # They start while the weights are loaded.
    loader.start_workers()
    encoder = _load_encoder(run, job)
    status.compiled = compile_layers(
        encoder, run.config.compile, num_tokens=int(costs.sum()), device=run.device
    )
    batches, status.budget_tokens, spare_bytes = _plan(run, job, encoder, costs, finished)
    status.total_rows, status.total_cost = len(batches.rows), int(batches.costs.sum())
    # Only now, because a model that loads would disturb the measuring of the memory.
    if (
        then is not None
        and not finished_parts(then.parts_dir)
        and has_room(then.model, then.precision, run.device, spare_bytes)
    ):
        then.model.load_ahead(run.device, then.precision, then.attention)
    parts = _embed_batches(run, job, batches, encoder, status, loader)
    # Before the barrier, so that the main process sees the final counts of all processes.
    run.monitor.publish()
    run.wait()
    run.monitor.end_pass()
    return parts


def _embed_batches(
    run: Run, job: Job, batches: Batches, encoder: Encoder, status: PassStatus, loader: Loader
) -> list[Path]:
    """Embed every batch in one of the processes, and return the parts of this one."""
    parts: list[Path] = []
    # Every process comes here equally often, so all of them get the same counter.
    claim = run.make_counter()
    is_done = np.zeros(len(batches), np.bool_)
    while not is_done.all():
        claims = ClaimedBatches(batches, claim)
        with torch.inference_mode():
            loop = Loop(run, job, batches, claims, status)
            parts += loop.run(loader.load(job, claims), encoder)
        # A collective, so it comes after the loop: processes have different numbers of batches.
        for taken in run.gather(claims.taken):
            is_done[taken] = True
        # The store that counts is open to others. What was lost there is dealt out without it.
        left = np.flatnonzero(~is_done)
        if len(left) and run.is_main:
            who = count_who(len(left), "batch", "are")
            logger.warning("%s: %s left over, and computed now", job.name, who)
        # The last number is the end of the list, which ends `ClaimedBatches`.
        claim = iter([*left[run.rank :: run.num_processes].tolist(), len(batches)]).__next__
    return parts


def _load_encoder(run: Run, job: Job) -> Encoder:
    with explaining_memory(
        f"{job.name}: the weights {job.model.weights.location} do not fit the memory of "
        f"{run.device}; use a device with more memory, or smaller weights"
    ):
        return job.model.load_encoder(run.device, job.precision, job.attention)


def _plan(
    run: Run, job: Job, encoder: Encoder, costs: Int64Array, finished: Int64Array
) -> tuple[Batches, int, float]:
    """Return the batches that remain and their token budget, the same in every process.

    The third value is how many bytes of a GPU these batches surely leave free.
    """
    budget, spare_bytes = job.batch_tokens, 0.0
    if budget is None:
        mine, spare_bytes = choose_budget(run, job, encoder, costs)
        # All processes share one plan. A larger GPU gains almost nothing from larger batches; it
        # claims more of them instead.
        budget = min(run.gather(mine))
    # First plan all rows, then leave out finished ones: other batches would round differently.
    batches = plan_batches(job.rows, costs, budget, job.model.min_tokens(job.precision))
    if job.shard is not None:
        # A share is cut from the full plan, so shares together compute what one run would.
        batches = batches.shard(*job.shard)
    remaining = batches.without(finished)
    num_done = len(batches.rows) - len(remaining.rows)
    logger.info(
        "%s: %s distinct of %s%s, %s of up to %s to do",
        job.name,
        f"{len(batches.rows):,}",
        count(len(job.source), "sequence"),
        f", {num_done:,} already done" if num_done else "",
        count(len(remaining), "batch"),
        count(budget, "token"),
    )
    return remaining, budget, spare_bytes


def choose_budget(run: Run, job: Job, encoder: Encoder, costs: Int64Array) -> tuple[int, float]:
    """Return the token budget that is fastest on this process's device and fits its memory.

    The second value is how many bytes its batches leave free on a GPU; 0 on a CPU. The memory that
    a token needs is measured on a small batch of the longest sequences, which need the most.
    """
    identity = job.identity
    place = (device_name(run.device), identity.backend, identity.embedding_dim, identity.precision)
    stored = read_budget(BudgetKey(*place, job.attention))
    most = stored or default_batch_tokens(run.device.type, identity.precision)
    if run.device.type != "cuda":
        return most, 0.0
    longest = max(1, int(costs.max()))
    rows = job.rows[np.argsort(-costs, kind="stable")[: max(1, _PROBE_TOKENS // longest)]]
    batch = job.model.load_collator()(rows, job.source.get_many(rows))
    num_affordable = count_affordable(
        lambda: encoder(send_to_device(batch, run.device)), run.device
    )
    # If not even one batch fits, the loop splits it down to single sequences.
    # At least the longest sequence: a budget below it would give every batch a single sequence.
    affordable = num_affordable * len(rows) * longest
    budget = int(min(most, max(longest, _MEMORY_SHARE * affordable)))
    spare = max(0.0, 1 - budget / affordable) if affordable else 0.0
    return budget, spare * measure_free_memory(run.device)

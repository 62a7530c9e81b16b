"""Fine-tuning: what its loop learns from drawn chunks, and measures on held-out ones.

On CPUs, the same settings and number of processes give the same weights, also after a kill and a
resume. A GPU does not sum in a fixed order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import functional

from virnucpro.backend.changes import Changes
from virnucpro.backend.interface import Alphabet
from virnucpro.config import TrainConfig
from virnucpro.runtime.devices import DTYPES, explaining_memory
from virnucpro.runtime.monitoring import TrainingStatus
from virnucpro.runtime.run import Run
from virnucpro.training.chunk_source import TrainingBatch
from virnucpro.training.head import FittedHead
from virnucpro.training.held_out import HeldOut
from virnucpro.training.loop import TrainingLoop, copy
from virnucpro.training.lora import read_changes
from virnucpro.training.network import Network

logger = logging.getLogger(__name__)

HEAD_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_WARM_UP_STEPS = 50
_PATIENCE = 10

TOO_LARGE = (
    "fine-tuning exceeds the memory of the device; choose fewer --micro-batch-tokens, or "
    "--gradient-checkpointing"
)
"""What helps where the encoders or a batch exceed the memory."""

Teacher = Callable[[TrainingBatch], Tensor]
"""Returns the logits (C,) of a batch of chunks on the device."""


class FineTuned(NamedTuple):
    """What a fine-tuning made.

    Attributes:
        head: The head over chunks. Its losses have the step of each evaluation, and the AUROC.
        changes: What has changed in each encoder that was trained.
    """

    head: FittedHead
    changes: dict[Alphabet, Changes]


class FineTuning(TrainingLoop):
    """One fine-tuning, as one process sees it."""

    figure = "auroc"
    network: Network

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        network: Network,
        held_out: HeldOut,
        state_path: Path,
        fingerprint: Mapping[str, Any],
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(
            run,
            network,
            # The head is new, and the encoders are not.
            lambda name: HEAD_LEARNING_RATE if name.startswith("head.") else config.learning_rate,
            state_path,
            seed=config.seed,
            weight_decay=_WEIGHT_DECAY,
            fingerprint=fingerprint,
        )
        self._config = config
        self._held_out = held_out
        self._teacher = teacher
        self._num_tokens = 0

    def fit(self, open_steps: Callable[[int], Iterator[list[TrainingBatch]]]) -> FineTuned:
        """Train until nothing improves, or steps or minutes are over, and return the best.

        Args:
            open_steps: Returns the batches of each step, from a given step on.

        Raises:
            MemoryExhaustedError: A batch exceeds the memory of the device.
            VirnucproError: The training diverged.
        """
        progress = self.progress
        if not progress.is_done:
            devices = [self._run.device] if self._run.device.type == "cuda" else []
            # The caller's random numbers stay as they were.
            with explaining_memory(TOO_LARGE), torch.random.fork_rng(devices):
                self._steps = open_steps(progress.step)
                self.train()
        self.put_best()
        state = {name: copy(value).cpu() for name, value in self.network.head.state_dict().items()}
        trained = self._config.finetuned
        tuned = FineTuned(
            FittedHead(state, progress.losses, progress.best),
            {name: read_changes(self.network.get_submodule(name)) for name in trained},
        )
        # Kinds of GPUs round differently, and all processes must embed with the same weights.
        return self._run.share(tuned if self._run.is_main else None)

    def schedule(self) -> tuple[float, float]:
        """Warm up in some steps, and end with the steps or the minutes."""
        step = self.progress.step
        share = max(step / self._config.steps, self._share_of_time())
        return (step + 1) / _WARM_UP_STEPS, share

    def is_due(self) -> bool:
        """Measure after so many steps each."""
        return self.progress.step % self._config.evaluate_steps == 0

    def is_over(self) -> bool:
        """End where steps or minutes are over, or nothing has improved for long."""
        progress = self.progress
        is_stale = len(progress.losses) - progress.best >= _PATIENCE
        return is_stale or progress.step >= self._config.steps or self._share_of_time() >= 1

    def learn(self) -> tuple[Tensor, int]:
        """Learn from the batches of the step."""
        if not self._num_tokens:
            self._since = time.monotonic()
        loss = torch.zeros((), device=self._run.device)
        num_chunks = 0
        for batch in next(self._steps):
            num_chunks += len(batch.is_viral_C)
            self._num_tokens += len(batch.dna.token_ids_T) + len(batch.protein.token_ids_T)
            loss += self._learn(send_to_device(batch, self._run.device, non_blocking=True))
        return loss, num_chunks

    def measure(self) -> dict[str, float]:
        """Return the held-out loss and AUROC."""
        # Before the evaluation, which takes time as well.
        self._tokens_per_second = self._num_tokens / (time.monotonic() - self._since)
        self._num_tokens = 0
        found = self._held_out.measure(self._score)
        return {"valid": found.loss, "auroc": found.auroc}

    def report(self, *, is_best: bool) -> None:
        """Log the losses, the AUROC, and how fast it goes, and tell the views."""
        last = self.progress.losses[-1]
        # At once, because no step follows the last evaluation.
        self._tell(last["train"])
        logger.info(
            "step %d of %d: loss %.4f, held out %.4f, AUROC %.4f%s; %s tokens/s a process%s",
            *(last["step"], self._config.steps, last["train"], last["valid"], last["auroc"]),
            " (best)" if is_best else "",
            f"{self._tokens_per_second:,.0f}",
            self._describe_memory(),
        )

    def _look(self) -> None:
        if not self._sums:
            return
        super()._look()
        self._tell(self.progress.loss / max(self.progress.num_chunks, 1))

    def _tell(self, loss: float) -> None:
        """Tell the views how far it is, and what the last evaluation found."""
        progress = self.progress
        last = progress.losses[-1] if progress.losses else {}
        self._run.monitor.tell_training(
            TrainingStatus(
                progress.step,
                self._config.steps,
                min(1.0, self.schedule()[1]),
                loss,
                last.get("valid"),
                last.get("auroc"),
            )
        )

    def _share_of_time(self) -> float:
        """Return how much of `minutes` is over; 0 without a limit."""
        minutes = self._config.minutes
        return 0.0 if minutes is None else self.progress.seconds / (60 * minutes)

    def _learn(self, batch: TrainingBatch) -> Tensor:
        """Add the gradients of a batch, and return the sum of its losses."""
        wanted_C = batch.is_viral_C
        if self._teacher is not None:
            taught_C = self._teacher(batch).sigmoid()
            wanted_C = torch.lerp(wanted_C, taught_C, self._config.teacher_weight)
        with self._autocast():
            logits_C = self.network(batch)
        loss = functional.binary_cross_entropy_with_logits(logits_C, wanted_C, reduction="sum")
        # So that the size of a step does not depend on how it is cut into batches.
        (loss / self._config.step_chunks).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _describe_memory(self) -> str:
        if self._run.device.type != "cuda":
            return ""
        return f", {torch.cuda.max_memory_allocated(self._run.device) / 2**30:.1f} GiB at most"

    def _score(self, batch: TrainingBatch) -> Tensor:
        with self._autocast():
            logits_C: Tensor = self.network(send_to_device(batch, self._run.device))
        return logits_C

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES[self._run.precision]
        # Frozen weights are in the precision of the run already.
        if dtype == torch.float32 or not self._config.finetune_all:
            return nullcontext()
        return torch.autocast(self._run.device.type, dtype)

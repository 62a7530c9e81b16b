"""The loop of a fine-tuning: steps over drawn chunks, held-out figures, the best weights so far.

All processes of a launch draw chunks of their own and step alike. On CPUs, the same settings and
number of processes give the same weights, also after a kill and a resume. A GPU does not sum in a
fixed order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import functional

from virnucpro.backend.changes import Changes
from virnucpro.backend.interface import Alphabet
from virnucpro.config import TrainConfig
from virnucpro.errors import MemoryExhaustedError, VirnucproError
from virnucpro.runtime.devices import DTYPES, is_out_of_memory
from virnucpro.runtime.run import Run
from virnucpro.training.chunk_source import TrainingBatch
from virnucpro.training.head import FittedHead
from virnucpro.training.held_out import HeldOut
from virnucpro.training.lora import read_changes
from virnucpro.training.network import Network
from virnucpro.training.tuning_state import Progress, load_state, save_state

logger = logging.getLogger(__name__)

HEAD_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 0.05
_WARM_UP_STEPS = 50
_MAX_GRADIENT_NORM = 1.0
_AVERAGE_DECAY = 0.998
_PATIENCE = 10
_SAVE_SECONDS = 60.0
# Reading a number from the GPU waits for it.
_STEPS_PER_LOOK = 10

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


class FineTuning:
    """One fine-tuning, as one process sees it."""

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
        self._run = run
        self._config = config
        self._network = network.train()
        self._held_out = held_out
        self._state_path = state_path
        text = json.dumps(fingerprint, sort_keys=True)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._teacher = teacher
        self._trained = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        self._begin_alike()
        self._optimizer = self._make_optimizer()
        # The running average is what is measured and kept: it is better than the last weights.
        self._average = {name: _copy(value) for name, value in self._trained.items()}
        self._best = {name: _copy(value) for name, value in self._trained.items()}
        self.progress = Progress()
        self._saved = time.monotonic()
        if state_path.exists():
            self._restore()

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Give every process the main process's numbers: kinds of GPUs round differently."""
        if self._run.num_processes > 1:
            for parameter in self._trained.values():
                mine = parameter if self._run.is_main else torch.zeros_like(parameter)
                parameter.copy_(self._run.sum(mine.clone()))

    def _make_optimizer(self) -> torch.optim.AdamW:
        """Return AdamW, with a learning rate of its own for the encoders; only matrices decay."""
        groups = []
        for in_head, peak in ((True, HEAD_LEARNING_RATE), (False, self._config.learning_rate)):
            mine = [p for name, p in self._trained.items() if name.startswith("head.") == in_head]
            for decay, chosen in (
                (_WEIGHT_DECAY, [p for p in mine if p.ndim > 1]),
                (0.0, [p for p in mine if p.ndim < 2]),
            ):
                groups.append({"params": chosen, "weight_decay": decay, "lr": peak, "peak": peak})
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
        for parameter in self._trained.values():
            # Made at once, so that the state of a training always has the same tensors.
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return optimizer

    def fit(self, open_steps: Callable[[int], Iterator[list[TrainingBatch]]]) -> FineTuned:
        """Train until nothing improves, or steps or minutes are over, and return the best.

        Args:
            open_steps: Returns the batches of each step, from a given step on.

        Raises:
            MemoryExhaustedError: A batch exceeds the memory of the device.
            VirnucproError: The training diverged.
        """
        progress, config = self.progress, self._config
        if not progress.is_done:
            self._start = time.monotonic() - progress.seconds
            devices = [self._run.device] if self._run.device.type == "cuda" else []
            # The caller's random numbers stay as they were.
            with explaining_memory(), torch.random.fork_rng(devices):
                self._train(open_steps(progress.step))
        _put(self._trained, self._best)
        head = self._network.head.state_dict()
        tuned = FineTuned(
            FittedHead(
                {name: _copy(value).cpu() for name, value in head.items()},
                progress.losses,
                progress.best,
            ),
            {name: read_changes(self._network.get_submodule(name)) for name in config.finetuned},
        )
        # Kinds of GPUs round differently, and all processes must embed with the same weights.
        return self._run.share(tuned if self._run.is_main else None)

    def _train(self, steps: Iterator[list[TrainingBatch]]) -> None:
        progress, config = self.progress, self._config
        sums: list[Tensor] = []
        num_tokens, began = 0, time.monotonic()
        while not progress.is_done:
            sums.append(self._step(next(steps)))
            num_tokens += self._num_tokens
            progress.step += 1
            is_over = progress.step >= config.steps
            is_due = progress.step % config.evaluate_steps == 0
            if progress.step % _STEPS_PER_LOOK == 0 or is_due or is_over:
                losses, num_chunks, seconds = torch.stack(sums).T.tolist()
                sums = []
                progress.loss += sum(losses)
                progress.num_chunks += round(sum(num_chunks))
                # The main process's clock counts in all: their learning rates must be equal.
                progress.seconds = seconds[-1]
                is_over |= self._share_of_time() >= 1
                if is_due or is_over:
                    self._evaluate(num_tokens / (time.monotonic() - began))
                    is_stale = len(progress.losses) - progress.best >= _PATIENCE
                    progress.is_done = is_over or is_stale
                    num_tokens, began = 0, time.monotonic()
                if is_due or is_over or time.monotonic() - self._saved > _SAVE_SECONDS:
                    self._save()

    def _share_of_time(self) -> float:
        """Return how much of `minutes` is over; 0 without a limit."""
        minutes = self._config.minutes
        return 0.0 if minutes is None else self.progress.seconds / (60 * minutes)

    def _step(self, batches: list[TrainingBatch]) -> Tensor:
        """Learn from the chunks of one step.

        Returns:
            float32 (3,): the sum of their losses, how many they are, and the seconds so far.
        """
        run, step = self._run, self.progress.step
        # What dropout draws depends on the step alone, so a resumed training draws the same.
        seeds = np.random.SeedSequence([self._config.seed, step, run.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        share = max(step / self._config.steps, self._share_of_time())
        rate = min(1.0, (step + 1) / _WARM_UP_STEPS) * (1 + math.cos(math.pi * min(share, 1))) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self._optimizer.zero_grad()
        loss = torch.zeros((), device=run.device)
        self._num_tokens = num_chunks = 0
        for batch in batches:
            num_chunks += len(batch.is_viral_C)
            self._num_tokens += len(batch.dna.token_ids_T) + len(batch.protein.token_ids_T)
            loss += self._learn(send_to_device(batch, run.device, non_blocking=True))
        sums_3 = self._add_gradients(loss, num_chunks)
        torch.nn.utils.clip_grad_norm_(self._trained.values(), _MAX_GRADIENT_NORM)
        self._optimizer.step()
        # A short memory at first, or the average would long be that of the beginning.
        decay = min(_AVERAGE_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(
            list(self._average.values()), [p.detach() for p in self._trained.values()], 1 - decay
        )
        return sums_3

    def _learn(self, batch: TrainingBatch) -> Tensor:
        """Add the gradients of a batch, and return the sum of its losses."""
        wanted_C = batch.is_viral_C
        if self._teacher is not None:
            taught_C = self._teacher(batch).sigmoid()
            wanted_C = torch.lerp(wanted_C, taught_C, self._config.teacher_weight)
        with self._autocast():
            logits_C = self._network(batch)
        loss = functional.binary_cross_entropy_with_logits(logits_C, wanted_C, reduction="sum")
        # So that the size of a step does not depend on how it is cut into batches.
        (loss / self._config.step_chunks).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _add_gradients(self, loss: Tensor, num_chunks: int) -> Tensor:
        """Give every process the sum of all gradients; return what `_step` does.

        Processes may have different numbers of batches in a step, so nothing is sent before the
        last one is done.
        """
        parameters = list(self._trained.values())
        seconds = time.monotonic() - self._start if self._run.is_main else 0.0
        told_3 = torch.cat((loss[None], loss.new_tensor([num_chunks, seconds])))
        if self._run.num_processes == 1:
            return told_3
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        summed = self._run.sum(torch.cat([one.flatten() for one in (*gradients, told_3)]))
        first = 0
        for parameter in parameters:
            last = first + parameter.numel()
            parameter.grad = summed[first:last].view_as(parameter)
            first = last
        return summed[first:]

    def _evaluate(self, tokens_per_second: float) -> None:
        """Measure the running average on held-out chunks, and keep it if it is the best yet."""
        progress = self.progress
        train_loss = progress.loss / max(progress.num_chunks, 1)
        progress.loss, progress.num_chunks = 0.0, 0
        if not math.isfinite(train_loss):
            raise VirnucproError(
                f"the fine-tuning diverged: the loss before step {progress.step} is not finite; "
                "begin anew with a smaller --learning-rate"
            )
        last = {name: _copy(value) for name, value in self._trained.items()}
        _put(self._trained, self._average)
        self._network.eval()
        # Machines may round differently, and all must decide alike what is best.
        found = self._run.share(self._held_out.measure(self._score))
        self._network.train()
        _put(self._trained, last)
        best = max((one["auroc"] for one in progress.losses), default=-math.inf)
        progress.losses.append(
            {
                "step": progress.step,
                "train": train_loss,
                "valid": found.loss,
                "auroc": found.auroc,
            }
        )
        if found.auroc > best:
            progress.best = len(progress.losses)
            self._best = {name: _copy(value) for name, value in self._average.items()}
        if self._run.is_main:
            logger.info(
                "step %d of %d: loss %.4f, held out %.4f, AUROC %.4f%s; %s tokens/s a process%s",
                *(progress.step, self._config.steps, train_loss, *found),
                " (best)" if found.auroc > best else "",
                f"{tokens_per_second:,.0f}",
                self._describe_memory(),
            )

    def _describe_memory(self) -> str:
        if self._run.device.type != "cuda":
            return ""
        return f", {torch.cuda.max_memory_allocated(self._run.device) / 2**30:.1f} GiB at most"

    def _score(self, batch: TrainingBatch) -> Tensor:
        with self._autocast():
            logits_C: Tensor = self._network(send_to_device(batch, self._run.device))
        return logits_C

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES[self._run.precision]
        # Frozen weights are in the precision of the run already.
        if dtype == torch.float32 or not self._config.finetune_all:
            return nullcontext()
        return torch.autocast(self._run.device.type, dtype)

    def _tensors(self) -> dict[str, Tensor]:
        """Return all that a training goes on from, by name."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            kept = self._optimizer.state[parameter]
            tensors |= {f"{kind}.{name}": value for kind, value in kept.items()}
            tensors |= {
                f"weight.{name}": parameter,
                f"average.{name}": self._average[name],
                f"best.{name}": self._best[name],
            }
        return tensors

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._run.is_main:
            save_state(self._state_path, self._fingerprint, self.progress, self._tensors())

    @torch.no_grad()
    def _restore(self) -> None:
        tensors = self._tensors()
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.progress, found = load_state(self._state_path, self._fingerprint, shapes)
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
        logger.info("fine-tuning goes on after step %d", self.progress.step)


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Say what helps where the encoders or a batch exceed the memory.

    Raises:
        MemoryExhaustedError: It does.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(
            "fine-tuning exceeds the memory of the device; choose fewer --micro-batch-tokens, or "
            "--gradient-checkpointing, and --resume"
        ) from error

"""The loop of a training: steps, the running average of the weights, held-out figures, the best.

All processes of a launch step alike, and each learns from chunks of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from virnucpro.errors import VirnucproError
from virnucpro.runtime.run import Run
from virnucpro.training.tuning_state import Progress, load_state, save_state

logger = logging.getLogger(__name__)

# Reading a number from the GPU waits for it.
STEPS_PER_LOOK = 10
_MAX_GRADIENT_NORM = 1.0
_AVERAGE_DECAY = 0.998
_SAVE_SECONDS = 60.0


class TrainingLoop(ABC):
    """One training, as one process sees it; a subclass says what is learned and measured.

    Attributes:
        figure: Which of the held-out figures tells what is best.
        network: What is trained: its parameters that require gradients.
        optimizer: AdamW.
        progress: How far the training has come, over all runs.
    """

    figure: ClassVar[str]
    network: nn.Module

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        peak_of: Callable[[str], float],
        state_path: Path,
        *,
        seed: int,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a training, or go on with one.

        Args:
            run: The run.
            network: What is trained, on the run's device.
            peak_of: Returns the highest learning rate of a parameter, by its name.
            state_path: The file from which a training goes on.
            seed: Of what dropout draws.
            weight_decay: Of matrices; other parameters do not decay.
            betas: Of AdamW.
            fingerprint: Everything that decides the weights; a file with another one is refused.
        """
        self._run = run
        self.network = network.train()
        self._state_path = state_path
        self._seed = seed
        text = json.dumps(fingerprint, sort_keys=True)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._trained = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        self._begin_alike()
        self.optimizer = _make_optimizer(self._trained, peak_of, weight_decay, betas)
        # The running average is what is measured and kept: it is better than the last weights.
        self._average = {name: copy(value) for name, value in self._trained.items()}
        self._best = {name: copy(value) for name, value in self._trained.items()}
        self._sums: list[Tensor] = []
        self.progress = Progress()
        if state_path.exists():
            self._restore()
        self._start_clock()

    @abstractmethod
    def schedule(self) -> tuple[float, float]:
        """Return how far the warm-up and the training have come; both end at 1."""

    @abstractmethod
    def learn(self) -> tuple[Tensor, int]:
        """Add this process's part of the step's gradients, whose sum over all processes counts.

        Returns:
            The sum of the losses of its chunks, and how many they are.
        """

    @abstractmethod
    def is_due(self) -> bool:
        """Return whether it is time to measure."""

    @abstractmethod
    def is_over(self) -> bool:
        """Return whether it is time to end."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Return the held-out figures of the network, alike in every process."""

    @abstractmethod
    def report(self, *, is_best: bool) -> None:
        """Tell of the last evaluation; the network still has the weights that were measured."""

    def train(self) -> None:
        """Take steps until it is over, and keep the state.

        Raises:
            VirnucproError: The training diverged.
        """
        progress = self.progress
        self._start_clock()
        self._saved = time.monotonic()
        while not progress.is_done:
            self.step()
            if progress.step % STEPS_PER_LOOK == 0 or self.is_due() or self.is_over():
                self._look()
                is_time = self.is_due() or self.is_over()
                if is_time:
                    self.evaluate()
                progress.is_done = self.is_over()
                if is_time or time.monotonic() - self._saved > _SAVE_SECONDS:
                    self._save()

    def step(self) -> None:
        """Learn from the chunks of one step."""
        step = self.progress.step
        # What dropout draws depends on the step alone, so a resumed training draws the same.
        seeds = np.random.SeedSequence([self._seed, step, self._run.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        warm, share = self.schedule()
        rate = min(1.0, warm) * (1 + math.cos(math.pi * min(share, 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad()
        self._sums.append(self._add_gradients(*self.learn()))
        torch.nn.utils.clip_grad_norm_(self._trained.values(), _MAX_GRADIENT_NORM)
        self.optimizer.step()
        # A short memory at first, or the average would long be that of the beginning.
        decay = min(_AVERAGE_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(
            list(self._average.values()), [p.detach() for p in self._trained.values()], 1 - decay
        )
        self.progress.step += 1

    def evaluate(self) -> None:
        """Measure the running average on held-out chunks, and keep it if it is the best yet.

        Raises:
            VirnucproError: The training diverged.
        """
        self._look()
        progress = self.progress
        train_loss = progress.loss / max(progress.num_chunks, 1)
        progress.loss, progress.num_chunks = 0.0, 0
        if not math.isfinite(train_loss):
            raise VirnucproError(
                f"the training diverged: the loss before step {progress.step} is not finite; "
                "begin again with a smaller --learning-rate"
            )
        best = max((one[self.figure] for one in progress.losses), default=-math.inf)
        with self.averaged():
            # Machines may round differently, and all must decide alike what is best.
            found = self._run.share(self.measure())
            progress.losses.append({"step": progress.step, "train": train_loss, **found})
            is_best = found[self.figure] > best
            if is_best:
                progress.best = len(progress.losses)
                self._best = {name: copy(value) for name, value in self._average.items()}
            if self._run.is_main:
                self.report(is_best=is_best)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the running average in the body, and let it not drop anything out."""
        last = {name: copy(value) for name, value in self._trained.items()}
        _put(self._trained, self._average)
        self.network.eval()
        yield
        self.network.train()
        _put(self._trained, last)

    def put_best(self) -> None:
        """Give the network the best weights."""
        _put(self._trained, self._best)

    @torch.no_grad()
    def _begin_alike(self) -> None:
        """Give every process the main process's numbers: kinds of GPUs round differently."""
        if self._run.num_processes > 1:
            for parameter in self._trained.values():
                mine = parameter if self._run.is_main else torch.zeros_like(parameter)
                parameter.copy_(self._run.sum(mine.clone()))

    def _start_clock(self) -> None:
        self._began = time.monotonic()
        self._seconds_before = self.progress.seconds

    def _look(self) -> None:
        """Read the losses of the steps since the last look, and the clock."""
        if not self._sums:
            return
        losses, num_chunks, seconds = torch.stack(self._sums).T.tolist()
        self._sums = []
        self.progress.loss += sum(losses)
        self.progress.num_chunks += round(sum(num_chunks))
        # The main process's clock counts in all: their learning rates must be equal.
        self.progress.seconds = seconds[-1]

    def _add_gradients(self, loss: Tensor, num_chunks: int) -> Tensor:
        """Give every process the sum of all gradients.

        Processes may have different numbers of batches in a step, so nothing is sent before the
        last one is done.

        Returns:
            float32 (3,): the sum of all losses, how many chunks they are of, and the seconds so
            far.
        """
        seconds = 0.0
        if self._run.is_main:
            seconds = self._seconds_before + time.monotonic() - self._began
        # Filled, as a copy to the GPU would wait for it.
        told_3 = torch.stack(
            (loss, torch.full_like(loss, num_chunks), torch.full_like(loss, seconds))
        )
        if self._run.num_processes == 1:
            return told_3
        parameters = list(self._trained.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        summed = self._run.sum(torch.cat([one.flatten() for one in (*gradients, told_3)]))
        first = 0
        for parameter in parameters:
            last = first + parameter.numel()
            parameter.grad = summed[first:last].view_as(parameter)
            first = last
        return summed[first:]

    def _tensors(self) -> dict[str, Tensor]:
        """Return all that a training goes on from, by name."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            kept = self.optimizer.state[parameter]
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
        logger.info("the training continues after step %d", self.progress.step)


def _make_optimizer(
    trained: Mapping[str, Tensor],
    peak_of: Callable[[str], float],
    weight_decay: float,
    betas: tuple[float, float],
) -> torch.optim.AdamW:
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in trained.items():
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((peak_of(name), decay), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": chosen, "weight_decay": decay, "lr": peak, "peak": peak}
            for (peak, decay), chosen in groups.items()
        ],
        betas=betas,
    )
    for parameter in trained.values():
        # Made at once, so that the state of a training always has the same tensors.
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def copy(tensor: Tensor) -> Tensor:
    """Return a copy that later steps do not change."""
    return tensor.detach().clone()

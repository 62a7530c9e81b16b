"""The loop of a training, compared with the same steps written out plainly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from virnucpro.config import ComputeConfig
from virnucpro.errors import IdentityMismatchError, VirnucproError
from virnucpro.runtime.run import Run, open_run
from virnucpro.training.loop import TrainingLoop

NUM_STEPS = 36
WARM_UP_STEPS = 6
MEASURE_STEPS = 4
PEAKS = {"0.weight": 0.3, "0.bias": 0.3, "2.weight": 0.05, "2.bias": 0.05}
DECAY = 0.2
HELD_OUT = 1
"""The step whose examples are also those that are measured."""


def make_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        # The dropout shows whether an evaluation leaves it on.
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(5, 4, generator=generator)
    # Wrong answers late in the training, so that the last weights are not the best.
    return inputs, inputs.sum(1) * (3.0 if step < NUM_STEPS // 2 else -9.0)


def measure_loss(network: nn.Module, step: int) -> Tensor:
    inputs, wanted = make_batch(step)
    # So small that some gradients are below the largest norm, and some above.
    return 0.02 * functional.mse_loss(network(inputs).squeeze(1), wanted, reduction="sum")


class Toy(TrainingLoop):
    """Learns sums, which turn around in the middle."""

    figure = "worth"

    def __init__(self, run: Run, path: Path, stop: int = NUM_STEPS, name: str = "toy") -> None:
        super().__init__(
            *(run, make_network(), PEAKS.__getitem__, path),
            seed=7,
            weight_decay=DECAY,
            fingerprint={"name": name},
        )
        self.stop = stop
        self.spoiled = False
        self.reported: list[tuple[bool, float]] = []

    def schedule(self) -> tuple[float, float]:
        step = self.progress.step
        return (step + 1) / WARM_UP_STEPS, step / NUM_STEPS

    def learn(self) -> tuple[Tensor, int]:
        loss = measure_loss(self.network, self.progress.step)
        (loss * (math.nan if self.spoiled else 1)).backward()
        return loss.detach() * (math.nan if self.spoiled else 1), 5

    def is_due(self) -> bool:
        return self.progress.step % MEASURE_STEPS == 0

    def is_over(self) -> bool:
        return self.progress.step >= self.stop

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        loss = measure_loss(self.network, HELD_OUT).item()
        return {"valid": loss, "worth": -loss}

    def report(self, *, is_best: bool) -> None:
        self.reported.append((is_best, self.measure()["valid"]))


class Plain:
    """What a training should come to, step by step."""

    def __init__(self) -> None:
        self.network = network = make_network()
        parameters = dict(network.named_parameters())
        groups = [
            {"params": [value], "lr": PEAKS[name], "weight_decay": DECAY * (value.ndim > 1)}
            for name, value in parameters.items()
        ]
        optimizer = torch.optim.AdamW(groups)
        average = make_network()
        self.losses: list[dict[str, float]] = []
        self.states: list[dict[str, Tensor]] = []
        total = 0.0
        for step in range(NUM_STEPS):
            warm = min(1, (step + 1) / WARM_UP_STEPS)
            for group, peak in zip(optimizer.param_groups, PEAKS.values(), strict=True):
                group["lr"] = peak * warm * (1 + math.cos(math.pi * step / NUM_STEPS)) / 2
            optimizer.zero_grad()
            network.train()
            # As the loop draws what dropout drops: by the seed, the step and the rank.
            torch.manual_seed(seed_of(step))
            loss = measure_loss(network, step)
            loss.backward()
            total += loss.item()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            keep = min(0.998, (step + 1) / (step + 10))
            with torch.no_grad():
                for kept, value in zip(average.parameters(), network.parameters(), strict=True):
                    kept.copy_(keep * kept + (1 - keep) * value)
            if (step + 1) % MEASURE_STEPS == 0:
                average.eval()
                found = measure_loss(average, HELD_OUT).item()
                self.losses.append(
                    {
                        "step": step + 1,
                        "train": total / (5 * MEASURE_STEPS),
                        "valid": found,
                        "worth": -found,
                    }
                )
                self.states.append({k: v.clone() for k, v in average.state_dict().items()})
                total = 0.0


def seed_of(step: int) -> int:
    return int(np.random.SeedSequence([7, step, 0]).generate_state(1, np.uint64)[0])


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with open_run(ComputeConfig(device="cpu")) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain() -> Plain:
    with torch.random.fork_rng():
        return Plain()


def assert_near(found: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)


def test_steps_averages_and_the_best_are_the_plain_ones(run: Run, plain: Plain, tmp_path) -> None:
    loop = Toy(run, tmp_path / "state")
    loop.train()
    assert [one["step"] for one in loop.progress.losses] == [one["step"] for one in plain.losses]
    for found, wanted in zip(loop.progress.losses, plain.losses, strict=True):
        assert found == pytest.approx(wanted, rel=1e-3)
    # An evaluation gives back the weights that are trained.
    assert_near(loop.network, plain.network.state_dict())
    worths = [one["worth"] for one in plain.losses]
    best = worths.index(max(worths))
    assert 0 < best < len(worths) - 1, "the best is neither the first nor the last"
    assert loop.progress.best == best + 1
    assert [is_best for is_best, _ in loop.reported] == [
        worth > max(worths[:place], default=-math.inf) for place, worth in enumerate(worths)
    ]
    # A report finds the network as it was measured.
    assert [loss for _, loss in loop.reported] == [one["valid"] for one in loop.progress.losses]
    loop.put_best()
    assert_near(loop.network, plain.states[best])


def test_a_training_goes_on_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    whole, path = Toy(run, tmp_path / "whole"), tmp_path / "state"
    whole.train()
    Toy(run, path, stop=16).train()
    other = Toy(run, path)
    assert (other.progress.step, other.progress.is_done) == (16, True)
    # A limit on the steps or minutes was raised.
    other.progress.is_done = False
    other.train()
    assert other.progress.losses == whole.progress.losses
    assert other.progress.seconds > 0
    for each in (other, whole):
        each.put_best()
    for name, value in other.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[name])
    with pytest.raises(IdentityMismatchError, match="other sequences, weights or settings"):
        Toy(run, path, name="another")


def test_a_training_that_diverges_is_stopped(run: Run, tmp_path: Path) -> None:
    loop = Toy(run, tmp_path / "state")
    loop.spoiled = True
    with pytest.raises(VirnucproError, match="the loss before step 4 is not finite"):
        loop.train()

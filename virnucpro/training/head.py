"""Fits the MLP: the original's layers, AdamW, and early stopping by the held-out loss.

Shapes: N frames, B frames in a batch, D numbers for a frame, H hidden units.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from virnucpro.errors import UsageError

logger = logging.getLogger(__name__)

NUM_HIDDEN = 512
_DROPOUT = 0.5
_BATCH_FRAMES = 256
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-2
_PATIENCE_EPOCHS = 5
_ROWS_AT_ONCE = 8192
_MIN_SCALE = 1e-6  # for numbers that are equal in all frames


class Examples(NamedTuple):
    """Frames for the fit, or for the held-out loss.

    Attributes:
        features: float32 (N, D).
        is_viral: bool (N,), the truth.
        weight: float64 (N,), the weight of each frame in the loss.
    """

    features: npt.NDArray[np.float32]
    is_viral: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.float64]


class FittedHead(NamedTuple):
    """A trained MLP.

    Attributes:
        state: Its tensors, under the names that `virnucpro.scoring.classifier` uses.
        losses: The weighted cross-entropy of the training frames, with dropout, and of the held-out
            frames, for each epoch.
        best_epoch: The epoch whose weights are kept, counted from 1.
    """

    state: dict[str, torch.Tensor]
    losses: list[dict[str, float]]
    best_epoch: int


class _MLP(nn.Module):
    """The original VirNucPro's classifier, with its names and its initial weights."""

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(input_dim, NUM_HIDDEN)
        self.bn1 = nn.BatchNorm1d(NUM_HIDDEN)
        self.output_layer = nn.Linear(NUM_HIDDEN, 2)
        self.dropout = nn.Dropout(_DROPOUT)
        nn.init.xavier_uniform_(self.hidden_layer.weight)
        nn.init.xavier_uniform_(self.output_layer.weight)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return the logits of others and virus, (B, 2)."""
        hidden_BH = self.dropout(self.bn1(self.hidden_layer(features_BD)).relu())
        logits_B2: torch.Tensor = self.output_layer(hidden_BH)
        return logits_B2


def fit_head(
    train: Examples, valid: Examples, *, epochs: int, seed: int, device: torch.device
) -> FittedHead:
    """Train an MLP until the held-out loss has not fallen for five epochs.

    The weights of the best epoch are kept. On one kind of device, the same arguments give the same
    weights.

    Args:
        train: Frames for the fit, at least two.
        valid: Frames whose loss decides when to stop.
        epochs: The maximum number of passes over the training frames.
        seed: The seed of the initial weights, the order and the dropout.
        device: Where to compute.

    Raises:
        UsageError: There are too few frames.
    """
    if len(train.features) < 2:
        raise UsageError(
            f"{len(train.features)} frames to train on, wanted at least two; add sequences"
        )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _Fit(train, valid, device, np.random.default_rng(seed)).run(epochs)


class _Fit:
    """One training: the module, its optimizer, and the scaling of the features."""

    def __init__(
        self, train: Examples, valid: Examples, device: torch.device, random: np.random.Generator
    ) -> None:
        self._device = device
        self._random = random
        # Embeddings of different models differ in scale; the first layer absorbs the scaling.
        mean_D = train.features.mean(axis=0, dtype=np.float64)
        scale_D = _measure_spread(train.features, mean_D) + _MIN_SCALE
        self._mean_D, self._scale_D = (
            torch.from_numpy(values.astype(np.float32)).to(device) for values in (mean_D, scale_D)
        )
        self._train, self._valid = train, valid
        self._module = _MLP(train.features.shape[1]).to(device)
        self._optimizer = torch.optim.AdamW(
            self._module.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
        )

    def run(self, epochs: int) -> FittedHead:
        losses: list[dict[str, float]] = []
        best_loss, best_epoch, best_state = math.inf, 0, self._module.state_dict()
        for epoch in range(1, epochs + 1):
            loss = {"train": self._learn(), "valid": self._judge()}
            losses.append(loss)
            logger.info("epoch %d: loss %.4f, held out %.4f", epoch, loss["train"], loss["valid"])
            if loss["valid"] < best_loss:
                best_loss, best_epoch = loss["valid"], epoch
                best_state = copy.deepcopy(self._module.state_dict())
            elif epoch - best_epoch >= _PATIENCE_EPOCHS:
                break
        return FittedHead(self._fold_scaling(best_state), losses, best_epoch)

    def _learn(self) -> float:
        self._module.train()
        num_batches = math.ceil(len(self._train.features) / _BATCH_FRAMES)
        # All batches have nearly the same size: batch normalization fails on a batch of one.
        batches = np.array_split(self._random.permutation(len(self._train.features)), num_batches)
        total = 0.0
        for rows in batches:
            loss, weight = self._measure(self._train, rows)
            self._optimizer.zero_grad()
            (loss / weight).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.item()
        return total / float(self._train.weight.sum())

    @torch.no_grad()
    def _judge(self) -> float:
        self._module.eval()
        starts = range(0, len(self._valid.features), _ROWS_AT_ONCE)
        blocks = (
            np.arange(start, min(start + _ROWS_AT_ONCE, len(self._valid.features)))
            for start in starts
        )
        total = sum(self._measure(self._valid, rows)[0].item() for rows in blocks)
        return total / float(self._valid.weight.sum())

    def _measure(
        self, examples: Examples, rows: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, float]:
        """Return the weighted sum of the frames' cross-entropies, and the sum of the weights."""
        features_BD = torch.from_numpy(examples.features[rows]).to(self._device)
        logits_B2 = self._module((features_BD - self._mean_D) / self._scale_D)
        classes_B = torch.from_numpy(examples.is_viral[rows].astype(np.int64)).to(self._device)
        weight_B = torch.from_numpy(examples.weight[rows].astype(np.float32)).to(self._device)
        losses_B = nn.functional.cross_entropy(logits_B2, classes_B, reduction="none")
        return (losses_B * weight_B).sum(), float(examples.weight[rows].sum())

    def _fold_scaling(self, state: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the tensors of a module that takes features without scaling."""
        folded = {name: tensor.double().cpu() for name, tensor in state.items()}
        mean_D, scale_D = (values.double().cpu() for values in (self._mean_D, self._scale_D))
        weight_HD = folded["hidden_layer.weight"] / scale_D
        folded["hidden_layer.weight"] = weight_HD
        folded["hidden_layer.bias"] = folded["hidden_layer.bias"] - weight_HD @ mean_D
        return {name: tensor.float() for name, tensor in folded.items()}


def _measure_spread(
    features_ND: npt.NDArray[np.float32], mean_D: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return float64 (D,): the standard deviations, in blocks to save a copy of all features."""
    squares_D = np.zeros(len(mean_D))
    for start in range(0, len(features_ND), _ROWS_AT_ONCE):
        squares_D += ((features_ND[start : start + _ROWS_AT_ONCE] - mean_D) ** 2).sum(axis=0)
    return np.sqrt(squares_D / len(features_ND))

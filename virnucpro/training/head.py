"""Fits the MLP: the original's layers, AdamW, and early stopping by the held-out loss.

Shapes: N frames, B frames in a batch, D numbers for a frame, H hidden units.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from virnucpro.backend.arrays import BoolArray, Float32Array, Float64Array, Int64Array
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

    features: Float32Array
    is_viral: BoolArray
    weight: Float64Array


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
    """The original VirNucPro's classifier, with its names and its initial weights.

    Embeddings of different models differ in scale, so the features are centred and scaled first.
    """

    mean_D: torch.Tensor
    scale_D: torch.Tensor

    def __init__(self, features_ND: Float32Array) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(features_ND.shape[1], NUM_HIDDEN)
        self.bn1 = nn.BatchNorm1d(NUM_HIDDEN)
        self.output_layer = nn.Linear(NUM_HIDDEN, 2)
        self.dropout = nn.Dropout(_DROPOUT)
        nn.init.xavier_uniform_(self.hidden_layer.weight)
        nn.init.xavier_uniform_(self.output_layer.weight)
        mean_D = features_ND.mean(axis=0, dtype=np.float64)
        squares_D = np.zeros(len(mean_D))
        for start in range(0, len(features_ND), _ROWS_AT_ONCE):  # saves a copy of all features
            squares_D += ((features_ND[start : start + _ROWS_AT_ONCE] - mean_D) ** 2).sum(axis=0)
        scale_D = np.sqrt(squares_D / len(features_ND)) + _MIN_SCALE
        self.register_buffer("mean_D", torch.from_numpy(mean_D.astype(np.float32)))
        self.register_buffer("scale_D", torch.from_numpy(scale_D.astype(np.float32)))

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return the logits of others and virus, (B, 2)."""
        scaled_BD = (features_BD - self.mean_D) / self.scale_D
        hidden_BH = self.dropout(self.bn1(self.hidden_layer(scaled_BD)).relu())
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
    random = np.random.default_rng(seed)
    losses: list[dict[str, float]] = []
    best_loss, best_epoch = math.inf, 0
    # The caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        module = _MLP(train.features).to(device)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
        )
        best_state = module.state_dict()
        for epoch in range(1, epochs + 1):
            learned = _learn(module, optimizer, train, random)
            loss = {"train": learned, "valid": _judge(module, valid)}
            losses.append(loss)
            logger.info("epoch %d: loss %.4f, held out %.4f", epoch, loss["train"], loss["valid"])
            if loss["valid"] < best_loss:
                best_loss, best_epoch = loss["valid"], epoch
                best_state = copy.deepcopy(module.state_dict())
            elif epoch - best_epoch >= _PATIENCE_EPOCHS:
                break
    return FittedHead(_fold_scaling(best_state), losses, best_epoch)


def _learn(
    module: _MLP, optimizer: torch.optim.Optimizer, train: Examples, random: np.random.Generator
) -> float:
    """Do one epoch and return its mean loss."""
    module.train()
    num_batches = math.ceil(len(train.features) / _BATCH_FRAMES)
    # All batches have nearly the same size: batch normalization fails on a batch of one.
    batches = np.array_split(random.permutation(len(train.features)), num_batches)
    total = 0.0
    for rows in batches:
        loss = _measure_loss(module, train, rows)
        optimizer.zero_grad()
        (loss / float(train.weight[rows].sum())).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / float(train.weight.sum())


@torch.no_grad()
def _judge(module: _MLP, valid: Examples) -> float:
    """Return the mean loss of the held-out frames."""
    module.eval()
    row_numbers = np.arange(len(valid.features))
    starts = range(0, len(row_numbers), _ROWS_AT_ONCE)
    blocks = (row_numbers[start : start + _ROWS_AT_ONCE] for start in starts)
    total = sum(_measure_loss(module, valid, rows).item() for rows in blocks)
    return total / float(valid.weight.sum())


def _measure_loss(module: _MLP, examples: Examples, rows: Int64Array) -> torch.Tensor:
    """Return the weighted sum of the cross-entropies of some frames."""
    device = module.mean_D.device
    logits_B2 = module(torch.from_numpy(examples.features[rows]).to(device))
    classes_B = torch.from_numpy(examples.is_viral[rows].astype(np.int64)).to(device)
    weight_B = torch.from_numpy(examples.weight[rows].astype(np.float32)).to(device)
    losses_B = nn.functional.cross_entropy(logits_B2, classes_B, reduction="none")
    return (losses_B * weight_B).sum()


def _fold_scaling(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a module that takes features without scaling."""
    # In float64, so that folding costs no precision.
    folded = {name: tensor.double().cpu() for name, tensor in state.items()}
    mean_D, scale_D = folded.pop("mean_D"), folded.pop("scale_D")
    weight_HD = folded["hidden_layer.weight"] / scale_D
    folded["hidden_layer.weight"] = weight_HD
    folded["hidden_layer.bias"] = folded["hidden_layer.bias"] - weight_HD @ mean_D
    return {name: tensor.float() for name, tensor in folded.items()}

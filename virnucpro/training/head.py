"""Fits a classifier's network: AdamW, and early stopping by the held-out loss.

The network is the original's MLP over frames, or a `ChunkHead` over the stretches of chunks.

Shapes: N frames or chunks, B of them in a batch. Of a frame: D numbers, H hidden units. Of a
chunk: S stretches, P numbers of a protein embedding, Q numbers of a DNA embedding, K features of a
stretch.
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

from virnucpro.backend.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from virnucpro.errors import UsageError, count
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes

logger = logging.getLogger(__name__)

# The original's layer. docs/training.md states it, and the settings of the fit.
NUM_HIDDEN = 512
_DROPOUT = 0.5
_CHUNK_DROPOUT = 0.3
_BATCH_FRAMES = 256
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-2
_PATIENCE_EPOCHS = 5
_ROWS_AT_ONCE = 8192
# For numbers that are equal in all frames.
_MIN_SCALE = 1e-6


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

    @property
    def inputs(self) -> tuple[npt.NDArray[Any], ...]:
        """What the network takes."""
        return (self.features,)


class ChunkExamples(NamedTuple):
    """Chunks for the fit, or for the held-out loss; the arrays are those of `ChunkHead`.

    Attributes:
        dna: float32 (N, Q).
        protein: float32 (N, S, P).
        features: float32 (N, S, K).
        is_stretch: bool (N, S).
        is_viral: bool (N,), the truth.
        weight: float64 (N,), the weight of each chunk in the loss.
    """

    dna: Float32Array
    protein: Float32Array
    features: Float32Array
    is_stretch: BoolArray
    is_viral: BoolArray
    weight: Float64Array

    @property
    def inputs(self) -> tuple[npt.NDArray[Any], ...]:
        """What the network takes."""
        return self[:4]


class FittedHead(NamedTuple):
    """A trained network.

    Attributes:
        state: Its tensors, under the names that `virnucpro.scoring.classifier` uses.
        losses: The weighted cross-entropy of the training examples, with dropout, and of the
            held-out examples, for each epoch.
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
        # In float64: a sum over millions of frames loses digits in float32.
        mean_D = features_ND.mean(axis=0, dtype=np.float64)
        squares_D = np.zeros(len(mean_D))
        # In blocks, which saves a copy of all features.
        for start in range(0, len(features_ND), _ROWS_AT_ONCE):
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
    train: Examples | ChunkExamples,
    valid: Examples | ChunkExamples,
    *,
    epochs: int,
    seed: int,
    device: torch.device,
) -> FittedHead:
    """Train an MLP over frames, or a `ChunkHead`, until the held-out loss stops falling.

    Training ends when the loss has not fallen for five epochs, and the weights of the best epoch
    are kept. On one kind of device, the same arguments give the same weights.

    Args:
        train: Frames or chunks for the fit, at least two. Their kind decides what is trained.
        valid: Those whose loss decides when to stop.
        epochs: The maximum number of passes over the training examples.
        seed: The seed of the initial weights, the order and the dropout.
        device: Where to compute.

    Raises:
        UsageError: There are too few examples.
    """
    is_mlp = isinstance(train, Examples)
    if len(train.weight) < 2:
        found = count(len(train.weight), "frame" if is_mlp else "chunk")
        raise UsageError(f"{found} to train on, wanted at least two; add sequences")
    # A generator of its own for the order, so that the order is the same on every device.
    random = np.random.default_rng(seed)
    losses: list[dict[str, float]] = []
    best_loss, best_epoch = math.inf, 0
    # The caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        module = _make_network(train).to(device)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
        )
        state = module.state_dict()
        for epoch in range(1, epochs + 1):
            learned = _learn(module, optimizer, train, random)
            loss = {"train": learned, "valid": _judge(module, valid)}
            losses.append(loss)
            logger.info("epoch %d: loss %.4f, held out %.4f", epoch, loss["train"], loss["valid"])
            if loss["valid"] < best_loss:
                best_loss, best_epoch = loss["valid"], epoch
                # A copy: `state_dict` returns the tensors themselves, which the next epoch changes.
                state = copy.deepcopy(module.state_dict())
            elif epoch - best_epoch >= _PATIENCE_EPOCHS:
                break
    state = {name: tensor.cpu() for name, tensor in state.items()}
    return FittedHead(_fold_scaling(state) if is_mlp else state, losses, best_epoch)


def _make_network(train: Examples | ChunkExamples) -> nn.Module:
    if isinstance(train, Examples):
        return _MLP(train.features)
    sizes = ChunkHeadSizes(train.dna.shape[1], train.protein.shape[2])
    # Without the zeros that stand where there is no stretch.
    return make_chunk_head(sizes, train.dna, train.protein[train.is_stretch])


def make_chunk_head(
    sizes: ChunkHeadSizes, dna_NQ: Float32Array, protein_FP: Float32Array
) -> ChunkHead:
    """Return a head whose first layers give each number of an embedding a like scale.

    Some numbers of an embedding vary a hundred times more than others. The weights of a layer
    normalization can take the scaling in, so that the head needs no other tensors.

    Args:
        sizes: The sizes of the head.
        dna_NQ: Embeddings of chunks for the training.
        protein_FP: Embeddings of their stretches.
    """
    head = ChunkHead(sizes, _CHUNK_DROPOUT)
    for layers, embeddings_ND in ((head.dna, dna_NQ), (head.protein, protein_FP)):
        norm = layers[0]
        assert isinstance(norm, nn.LayerNorm), "ChunkHead begins with it"
        _scale_outputs(norm, embeddings_ND)
    return head


@torch.no_grad()
def _scale_outputs(norm: nn.LayerNorm, embeddings_ND: Float32Array) -> None:
    """Let each output have the mean 0 and the deviation 1 over these embeddings."""
    sums_D = torch.zeros(2, embeddings_ND.shape[1], dtype=torch.float64)
    for start in range(0, len(embeddings_ND), _ROWS_AT_ONCE):
        block_ND = torch.from_numpy(embeddings_ND[start : start + _ROWS_AT_ONCE])
        normal_ND = nn.functional.layer_norm(block_ND.double(), norm.normalized_shape)
        sums_D += torch.stack((normal_ND.sum(0), (normal_ND**2).sum(0)))
    mean_D, square_D = sums_D / len(embeddings_ND)
    # `clamp`, because rounding can make a variance of 0 negative.
    scale_D = 1 / ((square_D - mean_D**2).clamp(min=0).sqrt() + _MIN_SCALE)
    norm.weight.copy_(scale_D)
    norm.bias.copy_(-mean_D * scale_D)


def _learn(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Examples | ChunkExamples,
    random: np.random.Generator,
) -> float:
    """Do one epoch and return its mean loss."""
    module.train()
    num_batches = math.ceil(len(train.weight) / _BATCH_FRAMES)
    # All batches have nearly the same size: batch normalization fails on a batch of one.
    batches = np.array_split(random.permutation(len(train.weight)), num_batches)
    total = 0.0
    for rows in batches:
        loss = _measure_loss(module, train, rows)
        optimizer.zero_grad()
        # The mean over the weights of the batch, so that every step has about the same size.
        (loss / float(train.weight[rows].sum())).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / float(train.weight.sum())


@torch.no_grad()
def _judge(module: nn.Module, valid: Examples | ChunkExamples) -> float:
    """Return the mean loss of the held-out examples."""
    # Without dropout, and by the statistics of the training: held-out rows must be independent.
    module.eval()
    row_numbers = np.arange(len(valid.weight))
    starts = range(0, len(row_numbers), _ROWS_AT_ONCE)
    blocks = (row_numbers[start : start + _ROWS_AT_ONCE] for start in starts)
    total = sum(_measure_loss(module, valid, rows).item() for rows in blocks)
    return total / float(valid.weight.sum())


def _measure_loss(
    module: nn.Module, examples: Examples | ChunkExamples, rows: Int64Array
) -> torch.Tensor:
    """Return the weighted sum of the cross-entropies of some examples."""
    device = next(module.parameters()).device
    logits = module(*(torch.from_numpy(array[rows]).to(device) for array in examples.inputs))
    classes_B = torch.from_numpy(examples.is_viral[rows].astype(np.int64)).to(device)
    weight_B = torch.from_numpy(examples.weight[rows].astype(np.float32)).to(device)
    # The MLP gives a logit for each class, and the head over chunks one logit for "virus".
    if logits.ndim == 2:
        losses_B = nn.functional.cross_entropy(logits, classes_B, reduction="none")
    else:
        losses_B = nn.functional.binary_cross_entropy_with_logits(
            logits, classes_B.float(), reduction="none"
        )
    return (losses_B * weight_B).sum()


def _fold_scaling(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a module that takes features without scaling."""
    # In float64, so that folding costs no precision.
    folded = {name: tensor.double() for name, tensor in state.items()}
    mean_D, scale_D = folded.pop("mean_D"), folded.pop("scale_D")
    # W ((x - mean) / scale) + b = (W / scale) x + (b - (W / scale) mean).
    weight_HD = folded["hidden_layer.weight"] / scale_D
    folded["hidden_layer.weight"] = weight_HD
    folded["hidden_layer.bias"] = folded["hidden_layer.bias"] - weight_HD @ mean_D
    return {name: tensor.float() for name, tensor in folded.items()}

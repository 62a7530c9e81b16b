"""How good scores are, by the package's own figures, and the calibration of frames in training.

Shapes: F frames, C chunks; the last dimension of logits is `others`, `virus`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from virnucpro.config import PredictConfig
from virnucpro.reports.metrics import Predictions, measure_metrics
from virnucpro.reports.report import against_the_rest
from virnucpro.training.splits import balance

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


def balanced_predictions(scores: Floats, probabilities: Floats, is_viral: Bools) -> Predictions:
    """Return chunks or records, weighed such that half of them are viral, as probabilities assume.

    Args:
        scores: Of N chunks or records, by which they are ranked; from 0.5 on they are called viral.
        probabilities: Of the same, which may be the scores.
        is_viral: Whether each is; both kinds must occur.
    """
    return Predictions(
        is_viral,
        scores.astype(np.float64),
        probabilities.astype(np.float64),
        scores >= PredictConfig.threshold,
        np.arange(len(scores)),
        balance(is_viral.astype(np.int64), np.array([False, True])),
    )


def figures_by_kind(predictions: Predictions, kinds: npt.NDArray[np.str_]) -> dict[str, float]:
    """Return AUROC and calibration error of all, and the AUROC of each kind against the other side.

    Args:
        predictions: N chunks or records, balanced.
        kinds: The kind of each; a kind is viral or cellular as a whole.
    """
    measured = measure_metrics(predictions)
    found = {"all": measured["auroc"], "ece": measured["calibration_error"]}
    for kind in np.unique(kinds).tolist():
        _, chosen = against_the_rest(kind, kinds == kind, predictions.is_viral)
        found[kind] = measure_metrics(predictions.select(chosen))["auroc"]
    return found


def chunk_logits(logits_F2: Tensor, chunk_F: Tensor, num_chunks: int) -> Tensor:
    """Return the logits (C,) of chunk scores as `scoring.calls.score_chunks` makes them."""
    log_p_F2 = logits_F2.log_softmax(1)
    index_F2 = chunk_F[:, None].expand_as(log_p_F2)
    empty_C2 = log_p_F2.new_full((num_chunks, 2), -torch.inf)
    max_C2 = empty_C2.scatter_reduce(0, index_F2, log_p_F2, "amax", include_self=False)
    return max_C2[:, 1] - max_C2[:, 0]


def calibrate(logits_F2: Tensor, calibration: Tensor) -> Tensor:
    """Return the logits times the scale, with the shift added to `virus`."""
    scale, shift = calibration
    return logits_F2 * scale + torch.stack((torch.zeros_like(shift), shift))


def fit_frame_calibration(logits_F2: Tensor, chunk_F: Tensor, is_viral_C: Tensor) -> Tensor:
    """Return scale and shift that make the chunks' scores likeliest, float32 (2,)."""
    logits_F2, chunk_F = logits_F2.double().cpu(), chunk_F.cpu()
    wanted_C = is_viral_C.double().cpu()
    calibration = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([calibration], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits_C = chunk_logits(calibrate(logits_F2, calibration), chunk_F, len(wanted_C))
        loss = functional.binary_cross_entropy_with_logits(logits_C, wanted_C)
        loss.backward()
        return loss

    optimizer.step(closure)
    return calibration.detach().float()

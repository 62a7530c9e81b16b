"""How good scores are: AUROC, calibration error, and the calibration that makes it small.

Shapes: F frames, C chunks; the last dimension of logits is `others`, `virus`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
_NUM_BINS = 15


def auroc(scores: Floats, is_viral: Bools) -> float:
    """Return the chance that a viral score is above another; ties count half. NaN if one lacks."""
    others = np.sort(scores[~is_viral])
    viral = scores[is_viral]
    if not len(others) or not len(viral):
        return float("nan")
    num_below = np.searchsorted(others, viral, "left") + np.searchsorted(others, viral, "right")
    return float(num_below.mean() / 2 / len(others))


def calibration_error(scores: Floats, is_viral: Bools) -> float:
    """Return the expected calibration error over 15 bins of equal width (Guo et al. 2017).

    Chunks are weighed such that half of them are viral, as probabilities assume.
    """
    bins = np.minimum((scores * _NUM_BINS).astype(int), _NUM_BINS - 1)
    weights = np.where(is_viral, 0.5 / max(is_viral.sum(), 1), 0.5 / max((~is_viral).sum(), 1))
    gaps = np.bincount(bins, weights * (is_viral - scores), _NUM_BINS)
    return float(np.abs(gaps).sum())


def figures_by_kind(
    scores: Floats, is_viral: Bools, kinds: npt.NDArray[np.str_]
) -> dict[str, float]:
    """Return the AUROC of all, and of each kind against the whole other side.

    Args:
        scores: Of chunks or records.
        is_viral: Whether each is.
        kinds: The kind of each; a kind is viral or cellular as a whole.
    """
    found = {"all": auroc(scores, is_viral), "ece": calibration_error(scores, is_viral)}
    for kind in np.unique(kinds):
        is_kind = kinds == kind
        chosen = is_kind | (is_viral != is_viral[is_kind][0])
        found[str(kind)] = auroc(scores[chosen], is_viral[chosen])
    return found


def chunk_logits(logits_F2: Tensor, chunk_F: Tensor, num_chunks: int) -> Tensor:
    """Return the logits (C,) of chunk scores as `virnucpro.scoring.score_chunks` makes them."""
    log_p_F2 = logits_F2.log_softmax(1)
    index_F2 = chunk_F[:, None].expand_as(log_p_F2)
    empty_C2 = log_p_F2.new_full((num_chunks, 2), -torch.inf)
    max_C2 = empty_C2.scatter_reduce(0, index_F2, log_p_F2, "amax", include_self=False)
    return max_C2[:, 1] - max_C2[:, 0]


def calibrate(logits_F2: Tensor, calibration: Tensor) -> Tensor:
    """Return the logits times the scale, with the shift added to `virus`."""
    scale, shift = calibration
    return logits_F2 * scale + torch.stack((torch.zeros_like(shift), shift))


def fit_calibration(logits_F2: Tensor, chunk_F: Tensor, is_viral_C: Tensor) -> Tensor:
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

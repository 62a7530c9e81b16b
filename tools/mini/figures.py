"""How good scores are, by the package's own figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from virnucpro.config import DEFAULT_THRESHOLD
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
        scores >= DEFAULT_THRESHOLD,
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

"""Figures of a binary classifier, each with a confidence interval.

All of them take weights, so that a bootstrap replicate is nothing but other weights: what is sorted
and binned once serves all replicates.

Shapes: N records, T distinct scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METRICS = (
    "auroc",
    "auprc",
    "precision",
    "recall",
    "specificity",
    "f1",
    "mcc",
    "brier",
    "calibration_error",
)
"""In the order of the reports; docs/training.md says what each one is."""

NUM_CALIBRATION_BINS = 15
_CONFIDENCE = 0.95
# Of many records an interval is narrow, and a hundred replicates tell it well enough.
_MOST_REPLICATES = 500
_FEWEST_REPLICATES = 100
_RECORDS_TIMES_REPLICATES = 10_000_000
# Of four, replicates draw nothing but one again and again often enough to make the interval's ends.
_FEWEST_CLUSTERS = 5


class Predictions(NamedTuple):
    """Records with their truth, and what a classifier said of them.

    Attributes:
        is_viral: bool (N,), the truth.
        score: float64 (N,), by which they are ranked; never NaN.
        probability: float64 (N,), that they are viral; NaN where it is not known.
        is_called: bool (N,), which were called viral.
        cluster: int64 (N,), the number of what is resampled as a whole, such as a genome.
        weight: float64 (N,), how much each record counts.
    """

    is_viral: Bools
    score: Floats
    probability: Floats
    is_called: Bools
    cluster: Ints
    weight: Floats

    def select(self, chosen: Bools | Ints) -> Predictions:
        """Return the records that `chosen` picks: a mask, or their positions in the new order."""
        return Predictions._make(column[chosen] for column in self)


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class Curves(NamedTuple):
    """What ROC and precision-recall curves are drawn from, by falling score.

    Attributes:
        true_positives: float64 (T,), the weight of viral records down to each distinct score.
        false_positives: float64 (T,), the same of other records.
    """

    true_positives: Floats
    false_positives: Floats


def estimate_metrics(predictions: Predictions, seed: int = 0) -> dict[str, Estimate]:
    """Return every figure of `METRICS` with the interval of a bootstrap over clusters.

    The interval holds the middle 95 % of the replicates in which a figure is defined: of 500, or of
    fewer where there are more than 20,000 records, but never under 100. Viral records of
    fewer than five clusters, or others, do not tell how much clusters differ: no interval is
    defined.

    Args:
        predictions: At least one record.
        seed: Of the bootstrap: the same one gives the same intervals.
    """
    random = np.random.default_rng(seed)
    ranked = _Ranked(predictions)
    values = ranked.measure(ranked.weight)
    if any(0 < num_clusters < _FEWEST_CLUSTERS for num_clusters in count_clusters(predictions)):
        return {
            name: Estimate(value, math.nan, math.nan)
            for name, value in zip(METRICS, values, strict=True)
        }
    names, cluster_N = np.unique(ranked.cluster, return_inverse=True)
    affordable = _RECORDS_TIMES_REPLICATES // len(cluster_N)
    num_replicates = min(_MOST_REPLICATES, max(_FEWEST_REPLICATES, affordable))
    replicates = np.empty((num_replicates, len(METRICS)))
    shares = np.full(len(names), 1 / len(names))
    for index in range(num_replicates):
        drawn = random.multinomial(len(names), shares)[cluster_N]
        replicates[index] = ranked.measure(ranked.weight * drawn)
    return {
        name: Estimate(value, *_interval(found))
        for name, value, found in zip(METRICS, values, replicates.T, strict=True)
    }


def measure_metrics(predictions: Predictions) -> dict[str, float]:
    """Return every figure of `METRICS` without an interval, of at least one record."""
    ranked = _Ranked(predictions)
    return dict(zip(METRICS, ranked.measure(ranked.weight), strict=True))


def count_clusters(predictions: Predictions) -> tuple[int, int]:
    """Return how many clusters have viral records, and how many have others."""
    cluster, is_viral = predictions.cluster, predictions.is_viral
    return len(np.unique(cluster[is_viral])), len(np.unique(cluster[~is_viral]))


def trace_curves(predictions: Predictions) -> Curves:
    """Return the points of the ROC and the precision-recall curve."""
    ranked = _Ranked(predictions)
    return ranked.trace(ranked.weight)


def bin_probabilities(predictions: Predictions) -> tuple[Floats, Floats, Floats]:
    """Return mean probability, share of viral records and weight of each calibration bin.

    Bins are of equal width; empty ones are left out.
    """
    ranked = _Ranked(predictions)
    weight, promised, found = ranked.sum_bins(ranked.weight)
    filled = weight > 0
    return promised[filled] / weight[filled], found[filled] / weight[filled], weight[filled]


def _interval(values: Floats) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


class _Ranked:
    """Records by falling score, ready to be measured under any weights."""

    def __init__(self, predictions: Predictions) -> None:
        order = np.argsort(-predictions.score, kind="stable")
        is_viral, score, probability, is_called, self.cluster, self.weight = predictions.select(
            order
        )
        # Records of equal score are told apart by no threshold.
        self._last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
        self._viral = is_viral.astype(np.float64)
        self._outcome = 2 * is_called + is_viral
        self._known = np.flatnonzero(~np.isnan(probability))
        self._probability = probability[self._known]
        number = (self._probability * NUM_CALIBRATION_BINS).astype(np.int64)
        self._bin = np.minimum(number, NUM_CALIBRATION_BINS - 1)
        self._square = (self._probability - self._viral[self._known]) ** 2

    def measure(self, weight: Floats) -> list[float]:
        """Return the figures of `METRICS`."""
        return [
            *_measure_ranking(self.trace(weight)),
            *_measure_calls(np.bincount(self._outcome, weight, 4).tolist()),
            *self._measure_calibration(weight),
        ]

    def trace(self, weight: Floats) -> Curves:
        """Return the curves."""
        true_positives = np.cumsum(weight * self._viral)[self._last]
        return Curves(true_positives, np.cumsum(weight * (1 - self._viral))[self._last])

    def _measure_calibration(self, weight: Floats) -> tuple[float, float]:
        weights, promised, found = self.sum_bins(weight)
        total = float(weights.sum())
        if total == 0:
            return math.nan, math.nan
        squares = float(weight[self._known] @ self._square)
        return squares / total, float(np.abs(promised - found).sum()) / total

    def sum_bins(self, weight: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the sums, in each bin, of weights, of probabilities and of viral records."""
        known = weight[self._known]
        sums = [
            np.bincount(self._bin, values, NUM_CALIBRATION_BINS).astype(np.float64)
            for values in (known, known * self._probability, known * self._viral[self._known])
        ]
        return sums[0], sums[1], sums[2]


def _measure_ranking(curves: Curves) -> tuple[float, float]:
    true, false = curves
    num_viral, num_others = true[-1], false[-1]
    if num_viral == 0 or num_others == 0:
        return math.nan, math.nan
    heights = true + np.append(0.0, true[:-1])
    area = (heights / 2 * np.diff(false, prepend=0.0)).sum()
    # Average precision: each step of the recall at the precision that it is reached with.
    called = true + false
    precision = np.divide(true, called, out=np.zeros(len(true)), where=called > 0)
    steps = np.diff(true, prepend=0.0)
    return float(area / num_viral / num_others), float((steps * precision).sum() / num_viral)


def _measure_calls(outcomes: list[float]) -> tuple[float, ...]:
    """Return precision, recall, specificity, F1 and MCC."""
    rejections, misses, false_alarms, hits = outcomes
    margins = (hits + false_alarms) * (hits + misses)
    margins *= (rejections + false_alarms) * (rejections + misses)
    return (
        _divide(hits, hits + false_alarms),
        _divide(hits, hits + misses),
        _divide(rejections, rejections + false_alarms),
        _divide(2 * hits, 2 * hits + false_alarms + misses),
        _divide(hits * rejections - false_alarms * misses, math.sqrt(margins)),
    )


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan

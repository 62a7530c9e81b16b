"""Measures a binary classifier, with a confidence interval for each figure.

All figures take weights. So a bootstrap replicate only changes the weights, and records are sorted
and binned once for all replicates.

Shapes: N records, T distinct scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array

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
"""All figures in the order of the reports; docs/training.md defines them."""

NUM_CALIBRATION_BINS = 15
NUM_EQUAL_BINS = 10
_CONFIDENCE = 0.95
_NORMAL_QUANTILE = 1.959964
# The intervals of many records are narrow, so a hundred replicates are enough for them.
_MAX_REPLICATES = 500
_MIN_REPLICATES = 100
_RECORDS_TIMES_REPLICATES = 10_000_000
# With four clusters, 3 % of the replicates contain a given one alone, which is enough to set an end
# of the interval (2.5 %). With five clusters, 1 % do.
_MIN_CLUSTERS = 5


class Predictions(NamedTuple):
    """Records with their truth, and what a classifier predicted for them.

    Attributes:
        is_viral: bool (N,), the truth.
        score: float64 (N,), by which the records are ranked; never NaN.
        probability: float64 (N,), the probability that each is viral; NaN if unknown.
        is_called: bool (N,), whether each was called viral.
        cluster: int64 (N,), the number of its cluster (such as a genome), resampled as a whole.
        weight: float64 (N,), the weight of each record.
    """

    is_viral: BoolArray
    score: Float64Array
    probability: Float64Array
    is_called: BoolArray
    cluster: Int64Array
    weight: Float64Array

    def select(self, chosen: BoolArray | Int64Array) -> Predictions:
        """Return the records of a mask, or of positions in their new order."""
        return Predictions._make(column[chosen] for column in self)


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval; NaN if undefined."""

    value: float
    low: float
    high: float


def estimate_metrics(predictions: Predictions, seed: int = 0) -> dict[str, Estimate]:
    """Return every figure of `METRICS` with the interval of a bootstrap over clusters.

    The interval contains the middle 95 % of the replicates in which a figure is defined. There are
    500 replicates, fewer for more than 20,000 records, and at least 100. If the viral records, or
    the others, come from fewer than five clusters, all intervals are undefined, because so few
    clusters do not show how much clusters differ.

    Args:
        predictions: At least one record.
        seed: The seed of the bootstrap; the same seed gives the same intervals.
    """
    # Seeded, so that a report that is made again says the same.
    random = np.random.default_rng(seed)
    ranked = _Ranked(predictions)
    names, cluster_N = np.unique(ranked.cluster, return_inverse=True)
    # To draw N clusters with replacement is to draw how often each of them comes.
    shares = np.full(len(names), 1 / len(names))
    affordable = _RECORDS_TIMES_REPLICATES // len(cluster_N)
    num_replicates = min(_MAX_REPLICATES, max(_MIN_REPLICATES, affordable))
    # None of a kind is no obstacle: some figures need one kind only.
    if any(0 < num_clusters < _MIN_CLUSTERS for num_clusters in count_clusters(predictions)):
        num_replicates = 0
    replicates = np.empty((num_replicates, len(METRICS)))
    for index in range(num_replicates):
        # How often each cluster is drawn; the weights of its records are multiplied by it.
        drawn = random.multinomial(len(names), shares)[cluster_N]
        replicates[index] = ranked.measure(ranked.weight * drawn)
    values = ranked.measure(ranked.weight)
    return {
        name: Estimate(value, *_interval(found))
        for name, value, found in zip(METRICS, values, replicates.T, strict=True)
    }


def measure_metrics(predictions: Predictions) -> dict[str, float]:
    """Return every figure of `METRICS` without intervals, for at least one record."""
    ranked = _Ranked(predictions)
    return dict(zip(METRICS, ranked.measure(ranked.weight), strict=True))


def count_clusters(predictions: Predictions) -> tuple[int, int]:
    """Return how many clusters have viral records, and how many have others."""
    cluster, is_viral = predictions.cluster, predictions.is_viral
    return len(np.unique(cluster[is_viral])), len(np.unique(cluster[~is_viral]))


def trace_curves(predictions: Predictions) -> tuple[Float64Array, Float64Array]:
    """Return the weights of viral and of other records down to each distinct score, both (T,).

    These are the points of the ROC and the precision-recall curve, by falling score.
    """
    ranked = _Ranked(predictions)
    return ranked.trace(ranked.weight)


class Bins(NamedTuple):
    """Bins of a calibration with about equally many records each; the arrays are (B,).

    Attributes:
        promised: The mean probability of each bin.
        share: The share of viral records in it.
        low: The lower end of the 95 % interval of the share, by Wilson.
        high: The upper end.
    """

    promised: Float64Array
    share: Float64Array
    low: Float64Array
    high: Float64Array


def bin_equally(predictions: Predictions, num_bins: int = NUM_EQUAL_BINS) -> Bins:
    """Return bins of equally many records by rising probability; unknown ones are left out.

    Records that share a probability may come into two bins.
    """
    known = np.flatnonzero(~np.isnan(predictions.probability))
    order = known[np.argsort(predictions.probability[known], kind="stable")]
    bins = [part for part in np.array_split(order, num_bins) if len(part)]
    rows = []
    for part in bins:
        weight = predictions.weight[part]
        total = weight.sum()
        # The sums may be rounded differently, and no share is above 1.
        share = min(1.0, float(weight @ predictions.is_viral[part] / total))
        # How many records of equal weight would say as much.
        size = float(total**2 / (weight**2).sum())
        rows.append(
            (float(weight @ predictions.probability[part] / total), share, *_wilson(share, size))
        )
    return Bins._make(np.array(rows).reshape(-1, 4).T)


def _wilson(share: float, size: float) -> tuple[float, float]:
    # Wilson's interval stays within 0 and 1, also for bins with few records.
    square = _NORMAL_QUANTILE**2
    middle = (share + square / (2 * size)) / (1 + square / size)
    reach = math.sqrt(share * (1 - share) / size + square / (4 * size**2))
    reach *= _NORMAL_QUANTILE / (1 + square / size)
    # And rounding must not push an end past the share itself.
    return max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))


def _interval(values: Float64Array) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


class _Ranked:
    """Records by falling score, prepared for measurements under any weights."""

    def __init__(self, predictions: Predictions) -> None:
        order = np.argsort(-predictions.score, kind="stable")
        is_viral, score, probability, is_called, self.cluster, self.weight = predictions.select(
            order
        )
        # No threshold separates records of equal score, so only the last of them is a point.
        self._last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
        self._viral = is_viral.astype(np.float64)
        # One number for each cell of the confusion matrix, so that one bincount fills the matrix.
        self._outcome = 2 * is_called + is_viral
        self._known = np.flatnonzero(~np.isnan(probability))
        self._probability = probability[self._known]
        number = (self._probability * NUM_CALIBRATION_BINS).astype(np.int64)
        # A probability of 1 belongs to the last bin.
        self._bin = np.minimum(number, NUM_CALIBRATION_BINS - 1)
        self._square = (self._probability - self._viral[self._known]) ** 2

    def measure(self, weight: Float64Array) -> list[float]:
        """Return the figures of `METRICS`."""
        return [
            *_measure_ranking(*self.trace(weight)),
            *_measure_calls(np.bincount(self._outcome, weight, 4).tolist()),
            *self._measure_calibration(weight),
        ]

    def trace(self, weight: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Return the points of the curves, as `trace_curves` does."""
        true_positives = np.cumsum(weight * self._viral)[self._last]
        return true_positives, np.cumsum(weight * (1 - self._viral))[self._last]

    def _measure_calibration(self, weight: Float64Array) -> tuple[float, float]:
        """Return the Brier score and the calibration error."""
        weights, promised, found = self.sum_bins(weight)
        total = float(weights.sum())
        if total == 0:
            return math.nan, math.nan
        squares = float(weight[self._known] @ self._square)
        return squares / total, float(np.abs(promised - found).sum()) / total

    def sum_bins(self, weight: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return the weight, the weighted probabilities and the viral weight in each bin."""
        known = weight[self._known]
        sums = [
            np.bincount(self._bin, values, NUM_CALIBRATION_BINS).astype(np.float64)
            for values in (known, known * self._probability, known * self._viral[self._known])
        ]
        return sums[0], sums[1], sums[2]


def _measure_ranking(true: Float64Array, false: Float64Array) -> tuple[float, float]:
    """Return AUROC and average precision."""
    num_viral, num_others = true[-1], false[-1]
    if num_viral == 0 or num_others == 0:
        return math.nan, math.nan
    # Trapezoids: of records with equal scores, half count as ranked right.
    heights = true + np.append(0.0, true[:-1])
    area = (heights / 2 * np.diff(false, prepend=0.0)).sum()
    # Average precision: the precision at each step of the recall, weighted by the step.
    called = true + false
    # A replicate may leave out the records with the highest scores.
    precision = np.divide(true, called, out=np.zeros(len(true)), where=called > 0)
    steps = np.diff(true, prepend=0.0)
    return float(area / num_viral / num_others), float((steps * precision).sum() / num_viral)


def _measure_calls(outcomes: list[float]) -> tuple[float, ...]:
    """Return precision, recall, specificity, F1 and MCC."""
    # In the order of the numbers that `_Ranked` gives the cells: 2 * called + viral.
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

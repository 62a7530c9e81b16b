"""Calibrates a model on records that it did not learn from, and chooses its default threshold.

Shapes: N records of all lengths.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from virnucpro.backend.arrays import BoolArray, Float64Array
from virnucpro.reports.metrics import Predictions, measure_metrics
from virnucpro.scoring.calibration import Calibration, fit_calibration

NUM_FOLDS = 5

MAX_FALSE_POSITIVES = {1000: 0.10, 3000: 0.05, 10_000: 0.05}
"""For each length in bp the largest share of a cellular kind that may be called viral."""


class ScoredRecords(NamedTuple):
    """Records of several lengths that have a score.

    Attributes:
        length_bp: int64 (N,).
        kinds: The kind of each, `class/sub-class`.
        groups: The group of each; relatives share one.
        weight: float64 (N,).
        score: float64 (N,).
        num_chunks: int64 (N,), the scored chunks.
    """

    length_bp: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    weight: Float64Array
    score: Float64Array
    num_chunks: npt.NDArray[np.int64]

    @property
    def is_viral(self) -> BoolArray:
        """Whether each record is viral."""
        return np.char.startswith(self.kinds, "viral/")

    def fit(self, chosen: BoolArray) -> Calibration:
        """Return a calibration of the chosen records; each length counts the same."""
        is_viral, weight = self.is_viral[chosen], self.weight[chosen]
        # Numbers the sides of all lengths.
        side = np.unique(self.length_bp[chosen], return_inverse=True)[1] * 2 + is_viral
        weight = weight / np.bincount(side, weight)[side]
        return fit_calibration(self.score[chosen], self.num_chunks[chosen], is_viral, weight)


def cross_fit(records: ScoredRecords, seed: int) -> Float64Array:
    """Return float64 (N,): each record's probability by a calibration that knows no relative."""
    fold = deal_groups(records.kinds, records.groups, seed)
    probability = np.empty(len(fold))
    for number in range(NUM_FOLDS):
        left_out = fold == number
        probability[left_out] = records.fit(~left_out).probabilities(
            records.score[left_out], records.num_chunks[left_out]
        )
    return probability


def deal_groups(
    kinds: npt.NDArray[np.str_], groups: npt.NDArray[np.str_], seed: int
) -> npt.NDArray[np.int64]:
    """Return the fold of each record; a kind's groups are dealt evenly over the folds."""
    rng = np.random.default_rng(seed)
    fold_of_group: dict[str, int] = {}
    for kind in np.unique(kinds):
        for group in rng.permutation(np.unique(groups[kinds == kind])).tolist():
            fold_of_group.setdefault(group, len(fold_of_group) % NUM_FOLDS)
    return np.array([fold_of_group[group] for group in groups.tolist()])


def choose_threshold(
    records: ScoredRecords, probability: Float64Array, exempt: Collection[str] = ()
) -> float:
    """Return the lowest threshold that keeps `MAX_FALSE_POSITIVES` in every cellular kind.

    It has two digits, because the records do not tell more.

    Args:
        records: The records.
        probability: float64 (N,), the probability of each.
        exempt: The kinds that may exceed the limits.
    """
    threshold = 0.5
    for length_bp, max_share in MAX_FALSE_POSITIVES.items():
        is_cellular = (records.length_bp == length_bp) & ~records.is_viral
        for kind in set(records.kinds[is_cellular].tolist()) - set(exempt):
            falling = np.sort(probability[is_cellular & (records.kinds == kind)])[::-1]
            # The first record that must not be called viral.
            refused = falling[int(max_share * len(falling))]
            threshold = max(threshold, float(np.floor(refused * 100 + 1) / 100))
    return threshold


def measure_error(records: ScoredRecords, probability: Float64Array, length_bp: int) -> float:
    """Return the calibration error of the records of one length, half of them viral by weight."""
    chosen = records.length_bp == length_bp
    is_viral, weight = records.is_viral[chosen], records.weight[chosen]
    side = np.bincount(is_viral.astype(np.int64), weight)[is_viral.astype(np.int64)]
    predictions = Predictions(
        is_viral,
        probability[chosen],
        probability[chosen],
        probability[chosen] >= 0.5,
        np.arange(len(is_viral)),
        weight / side,
    )
    return measure_metrics(predictions)["calibration_error"]


def share_called(
    records: ScoredRecords, probability: Float64Array, threshold: float
) -> dict[str, dict[int, float]]:
    """Return for each kind and length the share of the records that are called viral."""
    return {
        str(kind): {
            int(length_bp): float(
                (
                    probability[(records.kinds == kind) & (records.length_bp == length_bp)]
                    >= threshold
                ).mean()
            )
            for length_bp in np.unique(records.length_bp[records.kinds == kind])
        }
        for kind in np.unique(records.kinds)
    }

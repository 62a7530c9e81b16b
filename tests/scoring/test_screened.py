from __future__ import annotations

import numpy as np
import pytest

from virnucpro.scoring.screened import choose_bound, expect_loss


def test_the_bound_keeps_the_expected_loss() -> None:
    probability = np.random.default_rng(0).beta(0.2, 2.0, 5000)
    probability[::7] = np.nan
    for max_loss in (0.001, 0.01, 0.1):
        bound = choose_bound(probability, max_loss, ceiling=1.0)
        found = expect_loss(probability, probability < bound)
        assert 0.98 * max_loss < found <= max_loss
        # One more record would be too many.
        higher = probability[probability > bound].min()
        assert expect_loss(probability, probability < higher) > max_loss


def test_equal_probabilities_stay_together() -> None:
    probability = np.array([0.1, 0.1, 0.1, 0.7])
    assert choose_bound(probability, 0.2, 1.0) == 0.1  # two of the three would be few enough
    assert not (probability < 0.1).any()
    assert choose_bound(probability, 0.31, 1.0) == 0.7


@pytest.mark.parametrize(
    ("probability", "bound"), [([], 0.0), ([np.nan], 0.0), ([0.0, 0.0], 0.0), ([0.4, 0.6], 0.5)]
)
def test_bounds_of_odd_records(probability: list[float], bound: float) -> None:
    assert choose_bound(np.array(probability), 0.5, ceiling=0.5) == bound


def test_nothing_is_lost_where_nothing_is_viral() -> None:
    assert expect_loss(np.zeros(3), np.ones(3, np.bool_)) == 0.0

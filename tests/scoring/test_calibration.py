from __future__ import annotations

import numpy as np
import pytest

from virnucpro.scoring.calibration import (
    Calibration,
    assume_share,
    choose_threshold,
    estimate_share,
    expect_fdr,
    fit_calibration,
)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def make_records(
    num_records: int, seed: int = 0, offset_growth: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, open chunks and truth of records whose probabilities are known to be P.

    logit P = (0.4 + 0.5 ln n) logit(score) + offset_growth ln n. Scores are symmetric, so that half
    of the records are viral if there is no offset growth.
    """
    random = np.random.default_rng(seed)
    score = sigmoid(random.standard_normal(num_records) * 2)
    num_open_chunks = random.integers(1, 20, num_records)
    log_chunks = np.log(num_open_chunks)
    logits = (0.4 + 0.5 * log_chunks) * np.log(score / (1 - score)) + offset_growth * log_chunks
    chance = sigmoid(logits)
    return score, num_open_chunks, random.random(num_records) < chance


def test_known_probabilities_are_found_again() -> None:
    calibration = fit_calibration(*make_records(40_000))
    assert calibration.slope == pytest.approx(0.4, abs=0.05)
    assert calibration.slope_growth == pytest.approx(0.5, abs=0.05)
    assert calibration.offset == pytest.approx(0, abs=0.05)
    assert calibration.offset_growth == pytest.approx(0, abs=0.05)
    assert (calibration.most_chunks, calibration.viral_share) == (19, 0.5)
    score, num_open_chunks, is_viral = make_records(40_000, seed=1)
    probability = calibration.probabilities(score, num_open_chunks)
    for low in np.arange(0, 1, 0.1):
        chosen = (probability >= low) & (probability < low + 0.1)
        assert is_viral[chosen].mean() == pytest.approx(probability[chosen].mean(), abs=0.04)


def test_an_offset_that_grows_with_the_chunks_is_found_again() -> None:
    score, num_open_chunks, is_viral = make_records(60_000, offset_growth=0.3)
    calibration = fit_calibration(score, num_open_chunks, is_viral)
    assert calibration.offset_growth == pytest.approx(0.3, abs=0.05)
    # The fit assumes that half of the records are viral.
    share = float(is_viral.mean())
    for least, most in ((1, 3), (8, 12), (17, 19)):
        chosen = (num_open_chunks >= least) & (num_open_chunks <= most)
        probability = calibration.probabilities(score[chosen], num_open_chunks[chosen], share)
        assert probability.mean() == pytest.approx(is_viral[chosen].mean(), abs=0.02)


def test_records_of_nearly_one_length_do_not_decide_about_other_lengths() -> None:
    score, _, is_viral = make_records(48, seed=2)
    num_open_chunks = np.full(48, 6)
    # Two short records, which both happen to be viral.
    num_open_chunks[np.flatnonzero(is_viral)[:2]] = 3, 4
    calibration = fit_calibration(score, num_open_chunks, is_viral)
    assert abs(calibration.offset_growth) < 0.5
    asked = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    for number in (1, 2, 6):
        probability = calibration.probabilities(asked, np.full(5, number))
        assert (np.diff(probability) > 0).all()
        assert probability[0] < 0.2
        assert probability[-1] > 0.8


def test_unequal_numbers_of_each_kind_count_one_half_each() -> None:
    score, num_open_chunks, is_viral = make_records(60_000)
    is_kept = ~is_viral | (np.arange(len(score)) % 10 == 0)
    calibration = fit_calibration(score[is_kept], num_open_chunks[is_kept], is_viral[is_kept])
    assert calibration.offset == pytest.approx(0, abs=0.1)
    # A tenth of the viral records are left: odds of 1 to 10.
    probability = calibration.probabilities(score, num_open_chunks, viral_share=1 / 11)
    assert probability[is_kept].mean() == pytest.approx(is_viral[is_kept].mean(), abs=0.01)


def test_classes_without_an_overlap_leave_the_slope_finite() -> None:
    score = np.repeat([0.1, 0.9], 10)
    calibration = fit_calibration(score, np.ones(20, np.int64), score > 0.5)
    np.testing.assert_allclose(
        calibration.probabilities(np.array([0.1, 0.9]), np.array([1, 1])), [1 / 12, 11 / 12], 1e-3
    )
    assert calibration.slope_growth == pytest.approx(0)


def test_scores_that_tell_the_wrong_way_are_not_believed() -> None:
    score = np.repeat([0.1, 0.9], 50)
    calibration = fit_calibration(score, np.ones(100, np.int64), score < 0.5)
    np.testing.assert_allclose(calibration.probabilities(score, np.ones(100)), 0.5, atol=1e-9)
    assert calibration.ignores_scores
    assert not fit_calibration(score, np.ones(100, np.int64), score > 0.5).ignores_scores


def test_more_chunks_make_surer_up_to_those_seen() -> None:
    calibration = Calibration(0.5, 0.5, 0.0, most_chunks=10)
    high, low = np.full(4, 0.8), np.full(4, 0.2)
    num_open_chunks = np.array([1, 5, 10, 1000])
    rising = calibration.probabilities(high, num_open_chunks)
    assert (np.diff(rising[:3]) > 0).all()
    assert rising[2] == rising[3]
    np.testing.assert_allclose(calibration.probabilities(low, num_open_chunks), 1 - rising)


def test_scores_at_the_ends_and_none_at_all() -> None:
    calibration = Calibration(1.0, 0.0, 0.0, most_chunks=1)
    probability = calibration.probabilities(np.array([0.0, 1.0, np.nan]), np.array([1, 1, 0]))
    assert 0 < probability[0] < 1e-6
    assert 1 - 1e-6 < probability[1] < 1
    assert np.isnan(probability[2])


# Shares


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_the_share_of_viral_records_is_found_by_their_probabilities(share: float) -> None:
    random = np.random.default_rng(4)
    is_viral = random.random(200_000) < share
    # Probabilities that are right if half of the records are viral.
    calibrated = np.where(
        is_viral, random.beta(2, 1, len(is_viral)), random.beta(1, 2, len(is_viral))
    )
    assert estimate_share(calibrated, 0.5) == pytest.approx(share, abs=0.01)
    moved = assume_share(calibrated, 0.5, share)
    assert moved.mean() == pytest.approx(share, abs=0.01)
    # It does not matter which share the probabilities assume.
    assert estimate_share(moved, share) == pytest.approx(share, abs=0.01)


def test_a_share_at_the_ends_is_less_than_one_record() -> None:
    assert estimate_share(np.full(99, 0.01), 0.5) == pytest.approx(0.01, abs=1e-3)
    assert estimate_share(np.ones(99), 0.5) == pytest.approx(0.99, abs=1e-3)
    assert assume_share(np.array([0.0, 1.0]), 0.5, 0.1).tolist() == [0, 1]


# Thresholds


def test_the_longest_list_within_the_bound_is_called() -> None:
    probability = np.array([0.6, np.nan, 0.99, 0.9, 0.2])
    threshold = choose_threshold(probability, 0.1)
    assert threshold == 0.9
    assert expect_fdr(probability, probability >= threshold) == pytest.approx((0.01 + 0.1) / 2)
    assert choose_threshold(probability, 0.175) == 0.6
    assert choose_threshold(probability, 0.99) == 0.2


def test_equal_probabilities_are_called_together() -> None:
    # Two of the three would stay within the bound, and nothing tells which.
    assert choose_threshold(np.array([0.99, 0.8, 0.8]), 0.11) == 0.99


@pytest.mark.parametrize("probability", [[0.5, 0.4], [np.nan], []])
def test_nothing_is_called_where_nothing_can_be(probability: list[float]) -> None:
    found = np.array(probability, np.float64)
    assert choose_threshold(found, 0.01) is None
    assert expect_fdr(found, np.zeros(len(found), bool)) is None


def test_a_probability_does_not_depend_on_the_other_records() -> None:
    rng = np.random.default_rng(0)
    score, num_open_chunks = rng.random(4001), rng.integers(0, 50, 4001)
    calibration = Calibration(slope=4.1, slope_growth=0.53, offset=-0.27, most_chunks=20)
    together = calibration.probabilities(score, num_open_chunks, 0.05)
    alone = [
        calibration.probabilities(score[[place]], num_open_chunks[[place]], 0.05)
        for place in range(4001)
    ]
    assert (together == np.concatenate(alone)).all()

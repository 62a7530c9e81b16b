from __future__ import annotations

import numpy as np
import pytest

from tools.mini.calibrating import (
    NUM_FOLDS,
    ScoredRecords,
    choose_threshold,
    cross_fit,
    deal_groups,
    measure_error,
    share_called,
)

CELLULAR, VIRAL = "bacteria/chromosome", "viral/phage"


def draw(lengths_bp: list[int], num_of_kind: int, num_groups: int, seed: int) -> ScoredRecords:
    """Return records whose logits are right: a viral record has exp(logit) times the chance."""
    rng = np.random.default_rng(seed)
    length_bp = np.repeat(lengths_bp, 2 * num_of_kind)
    kinds = np.tile(np.repeat([CELLULAR, VIRAL], num_of_kind), len(lengths_bp))
    number = rng.integers(num_groups, size=len(kinds))
    groups = np.array([f"{kind[0]}{group}" for kind, group in zip(kinds, number, strict=True)])
    # Normal logits around +-mean with variance 2 mean are calibrated.
    logit = np.where(kinds == VIRAL, 1.0, -1.0) + rng.normal(0, 2**0.5, len(kinds))
    one = np.ones(len(kinds))
    return ScoredRecords(
        length_bp, kinds, groups, one, 1 / (1 + np.exp(-logit)), one.astype(np.int64)
    )


def test_groups_are_dealt_evenly_and_stay_together() -> None:
    records = draw([500], 300, 20, seed=0)
    fold = deal_groups(records.kinds, records.groups, seed=1)
    for kind in (CELLULAR, VIRAL):
        folds = {
            group: set(fold[records.groups == group].tolist())
            for group in np.unique(records.groups[records.kinds == kind])
        }
        assert all(len(found) == 1 for found in folds.values())
        dealt = np.bincount([found.pop() for found in folds.values()], minlength=NUM_FOLDS)
        assert dealt.max() - dealt.min() <= 1


def test_cross_fitting_finds_what_is_calibrated_and_what_is_not() -> None:
    records = draw([500, 1000], 4000, 40, seed=0)
    probability = cross_fit(records, seed=1)
    np.testing.assert_allclose(probability, records.score, atol=0.05)
    assert measure_error(records, probability, 500) < 0.03
    too_sure = records.score**3 / (records.score**3 + (1 - records.score) ** 3)
    assert measure_error(records, too_sure, 500) > 0.1
    # Scores that are too sure are put right.
    assert measure_error(records, cross_fit(records._replace(score=too_sure), 1), 500) < 0.03


def test_relatives_have_no_influence() -> None:
    records = draw([500], 200, 20, seed=0)
    fold = deal_groups(records.kinds, records.groups, seed=1)
    score = records.score.copy()
    changed = np.flatnonzero(fold == fold[0])[:10]
    score[changed] = 1 - score[changed]
    before, after = (cross_fit(one, seed=1) for one in (records, records._replace(score=score)))
    is_kept = before == after
    is_kept[changed] = True
    np.testing.assert_array_equal(is_kept, fold == fold[0])


@pytest.mark.parametrize(("length_bp", "share"), [(1000, 0.10), (3000, 0.05), (10_000, 0.05)])
def test_the_threshold_keeps_the_limits(length_bp: int, share: float) -> None:
    records = draw([length_bp], 1000, 20, seed=0)
    threshold = choose_threshold(records, records.score)
    found, lower = (
        share_called(records, records.score, one)[CELLULAR][length_bp]
        for one in (threshold, threshold - 0.02)
    )
    assert found <= share < lower
    assert choose_threshold(records, records.score, [CELLULAR]) == 0.5


def test_short_records_do_not_set_the_threshold() -> None:
    assert choose_threshold(draw([500], 100, 20, seed=0), draw([500], 100, 20, seed=0).score) == 0.5

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from virnucpro.scoring.calls import call_chunks
from virnucpro.scoring.frame_scores import Scores, leave_out
from virnucpro.scoring.screened import choose_bound, expect_loss
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store


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


def test_scores_that_a_screened_record_has_by_chance_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "in.fa"
    path.write_text("".join(f">r{number}\n{'ACG' * 40}\n" for number in range(3)))
    store = build_frame_store([str(path)], tmp_path / "store", StoreSettings(60))
    frames = np.full((store.num_rows, 2), 0.5, np.float32)
    # The first record shares all frames with the second, and lacks one.
    frames[0] = np.nan
    scores = Scores(call_chunks(frames, store.chunk_first_frame), frames.copy())
    left = leave_out(scores, store, np.array([True, False, True]))
    is_out = np.repeat([True, False, True], 2)
    assert left.frames is not None
    is_row_out = is_out[store.find_chunks(np.arange(store.num_rows))]
    np.testing.assert_array_equal(np.isnan(left.frames[:, 1]), is_row_out)
    for found in (left.chunks.max_virus, left.chunks.max_others):
        np.testing.assert_array_equal(np.isnan(found), is_out)
    np.testing.assert_array_equal(left.chunks.is_open, ~is_out)
    assert scores.chunks.num_unscored.sum() == 1
    assert not left.chunks.num_unscored.any()
    np.testing.assert_array_equal(left.chunks.num_frames, scores.chunks.num_frames)

"""Regions: the path of the hidden Markov model, and which stretches become regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.region_model import RegionModel
from virnucpro.scoring.regions import ChunkEvidence, describe_chunks, find_spans, find_viral_chunks

MODEL = RegionModel(least=0.25, most=2.0, switch=3.0, background=0.5)


def value_path(log_odds: list[float], path: Sequence[bool]) -> float:
    gains = np.nan_to_num(np.clip(np.array(log_odds) - 0.25, -2, 2))
    return float(gains @ np.array(path)) - 3.0 * np.count_nonzero(np.diff(path))


odds = st.floats(-9, 9) | st.just(np.nan)


@given(st.lists(st.lists(odds, max_size=6), min_size=1, max_size=4))
def test_the_path_is_the_best_of_all(records: list[list[float]]) -> None:
    first = np.cumsum([0, *map(len, records)])
    found = find_viral_chunks(np.array([one for each in records for one in each]), first, MODEL)
    for log_odds, (start, stop) in zip(records, pairwise(first), strict=True):
        paths = product([False, True], repeat=len(log_odds))
        best = max(value_path(log_odds, path) for path in paths)
        assert value_path(log_odds, found[start:stop]) == pytest.approx(best)


def test_a_prophage_is_found_and_a_single_high_chunk_is_not() -> None:
    log_odds = np.full(100, -3.0)
    log_odds[40:60] = 3.0
    log_odds[[10, 50]] = [9.0, -9.0]
    found = np.flatnonzero(find_viral_chunks(log_odds, np.array([0, 100])))
    assert found.tolist() == list(range(40, 60))


def test_a_region_stands_out_from_its_record() -> None:
    """The same stretch is a region in a record of low chunks, and none among higher ones."""
    stretch = [0.48] * 30
    low, high, whole = [-2.0] * 60 + stretch, [0.25] * 60 + stretch, stretch
    first = np.array([0, 90, 180, 210])
    log_odds = np.array([*low, *high, *whole])
    model = RegionModel(least=0.4, most=2.0, switch=3.0, background=0.5)
    found = [each.tolist() for each in find_spans(log_odds, first, model)]
    assert found == [[60], [90]]
    found = [each.tolist() for each in find_spans(log_odds, first, replace(model, background=0))]
    assert found == [[180], [210]]
    # Chunks without a score are no background.
    log_odds[:60] = np.nan
    assert find_spans(log_odds, first, model)[0].tolist() == []


@given(st.lists(st.lists(odds, max_size=9), min_size=1, max_size=4))
def test_the_background_is_the_median_of_each_record(records: list[list[float]]) -> None:
    """Records are told apart: each is what it would be alone, after its median is subtracted."""
    first = np.cumsum([0, *map(len, records)])
    found = find_spans(np.array([one for each in records for one in each]), first, MODEL)
    expected = []
    for start, record in zip(first, records, strict=False):
        values = np.array(record)
        known = values[~np.isnan(values)]
        if len(known):
            values = values - 0.5 * min(np.median(known), MODEL.least)
        no_background = replace(MODEL, background=0)
        spans = find_spans(values, np.array([0, len(values)]), no_background)
        expected += [(start + begin, start + end) for begin, end in zip(*spans, strict=True)]
    assert list(zip(*found, strict=True)) == expected


def test_a_record_that_is_viral_throughout_stays_whole() -> None:
    log_odds = np.array([1.0] * 40)
    assert [each.tolist() for each in find_spans(log_odds, np.array([0, 40]))] == [[0], [40]]


def test_a_region_does_not_go_on_into_the_next_record() -> None:
    log_odds = np.array([-9.0] * 20 + [3.0] * 20 + [-1.0] * 3)
    found = find_viral_chunks(log_odds, np.array([0, 40, 43]))
    assert np.flatnonzero(found).tolist() == list(range(20, 40))


def test_scores_of_chunks_become_probabilities() -> None:
    calibration = Calibration(slope=2.0, slope_growth=1.0, offset=0.5, most_chunks=9)
    known = ChunkEvidence(np.array([0.5, 0.87654321, np.nan]), calibration)
    chunks = describe_chunks(known, 0.5)
    assert chunks.score.tolist()[:2] == [0.5, 0.8765]
    assert chunks.evidence[0] == pytest.approx(0.5)
    assert chunks.probability[0] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-4)
    assert np.isnan([chunks.probability[2], chunks.evidence[2]]).all()
    rare = describe_chunks(known._replace(score=chunks.score), 0.01)
    assert rare.probability[0] < 0.03
    np.testing.assert_array_equal(rare.evidence, chunks.evidence)


def test_without_a_calibration_the_score_decides() -> None:
    chunks = describe_chunks(ChunkEvidence(np.array([0.0, 0.5, 0.9, 1.0]), None), None)
    assert np.isnan(chunks.probability).all()
    assert chunks.evidence[1:3] == pytest.approx([0, np.log(9)], abs=1e-4)
    assert np.isfinite(chunks.evidence).all()

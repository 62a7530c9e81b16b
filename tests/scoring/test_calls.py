from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from virnucpro.scoring.calls import ChunkCalls, call_chunks, call_records, make_calls, score_chunks

F32 = np.float32


def make_chunks(*maxima: tuple[float, float] | None) -> ChunkCalls:
    """One chunk for each pair (others, virus) of a single frame; None is a chunk without frame."""
    scores = np.array([pair for pair in maxima if pair is not None], F32).reshape(-1, 2)
    first = np.cumsum([0] + [pair is not None for pair in maxima])
    return call_chunks(scores, first)


def call_one(*maxima: tuple[float, float] | None, length: int = 500, **settings: float):
    chunks = make_chunks(*maxima)
    calls = call_records(chunks, np.array([0, len(maxima)]), np.array([length]), **settings)
    return {name: column[0] for name, column in calls._asdict().items()}


def test_maxima_of_a_chunk_are_taken_independently() -> None:
    scores = np.array([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3]], F32)
    chunks = call_chunks(scores, np.array([0, 2, 3]))
    assert chunks.max_others.tolist() == [F32(0.6), F32(0.7)]
    assert chunks.max_virus.tolist() == [F32(0.9), F32(0.3)]
    assert chunks.is_virus.tolist() == [True, False]
    assert chunks.num_frames.tolist() == [2, 1]


def test_tie_is_viral() -> None:
    assert make_chunks((0.5, 0.5)).is_virus.tolist() == [True]


def test_chunks_without_frames_stay_closed() -> None:
    chunks = make_chunks(None, (0.2, 0.8), None, None, (0.9, 0.1), None)
    assert chunks.is_open.tolist() == [False, True, False, False, True, False]
    assert chunks.is_virus.tolist() == [False, True, False, False, False, False]
    assert np.isnan(chunks.max_virus[~chunks.is_open]).all()
    assert chunks.max_virus[chunks.is_open].tolist() == [F32(0.8), F32(0.1)]


def test_agrees_with_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    first = np.concatenate([[0], np.cumsum(random.integers(0, 7, 500))])
    virus = random.random(first[-1], F32)
    scores = np.stack([1 - virus, virus], axis=1)
    chunks = call_chunks(scores, first)
    for chunk, (start, stop) in enumerate(pairwise(first)):
        if start == stop:
            assert not chunks.is_open[chunk]
            continue
        assert chunks.max_others[chunk] == max(scores[start:stop, 0])
        assert chunks.max_virus[chunk] == max(scores[start:stop, 1])
        assert chunks.is_virus[chunk] == (max(scores[start:stop, 1]) >= max(scores[start:stop, 0]))


@pytest.mark.parametrize("steps", [-2, -1, 0, 1, 2])
def test_score_of_a_chunk_decides_as_the_maxima_do_to_the_last_bit(steps: int) -> None:
    others = np.random.default_rng(1).uniform(0, 1, 100_000).astype(F32)
    others = np.concatenate([others, [F32(1), F32(0.5), F32(1e-38), np.nextafter(F32(1), F32(0))]])
    virus = others
    for _ in range(abs(steps)):
        virus = np.nextafter(virus, F32(np.sign(steps) * np.inf))
    chunks = call_chunks(np.stack([others, virus], axis=1), np.arange(len(others) + 1))
    np.testing.assert_array_equal(score_chunks(chunks) >= 0.5, chunks.is_virus)
    assert chunks.is_virus.all() == (steps >= 0)


def test_read_of_one_chunk_is_called_as_its_chunk() -> None:
    assert call_one((0.5, 0.5))["call"] == "virus"
    below = call_one((np.nextafter(F32(0.5), F32(1)), 0.5))
    assert below["call"] == "others"
    assert below["score"] < 0.5
    read = call_one((0.25, 0.75))
    assert np.isnan(read.pop("probability"))
    assert read == {
        "num_chunks": 1,
        "num_open_chunks": 1,
        "num_frames": 1,
        "num_viral_chunks": 1,
        "score": 0.75,
        "call": "virus",
        "reason": "-",
        "scored_share": 1.0,
        "confidence": "-",
        "judged_by": "classifier",
    }


def test_score_of_a_contig_is_the_mean_of_its_open_chunks() -> None:
    contig = call_one((0.25, 0.75), None, (0.75, 0.25), (0.875, 0.125), length=2000)
    assert contig["score"] == pytest.approx((0.75 + 0.25 + 0.125) / 3, abs=1e-15)
    assert (contig["call"], contig["num_viral_chunks"]) == ("others", 1)
    assert (contig["num_chunks"], contig["num_open_chunks"], contig["num_frames"]) == (4, 3, 3)


def test_one_viral_chunk_does_not_make_a_long_contig_viral() -> None:
    assert call_one(*[(0.9, 0.1)] * 39, (0.01, 0.99), length=20_000)["call"] == "others"


def test_threshold_is_inclusive() -> None:
    assert make_calls(np.array([0.75]), 0.75).tolist() == ["virus"]
    assert make_calls(np.array([0.75]), 0.76).tolist() == ["others"]


@pytest.mark.parametrize(
    ("length", "chunks", "reason"),
    [(0, [], "empty"), (2, [None], "too_short"), (3, [None], "no_open_frame")],
)
def test_no_call_has_a_reason(length: int, chunks: list[None], reason: str) -> None:
    record = call_one(*chunks, length=length)
    assert (record["call"], record["reason"]) == ("none", reason)
    assert np.isnan(record["score"])


def test_records_under_the_minimum_length_are_not_called() -> None:
    short = call_one((0.1, 0.9), length=149, min_length_bp=150)
    assert (short["call"], short["reason"]) == ("none", "too_short")
    assert np.isnan(short["score"])
    assert call_one((0.1, 0.9), length=150, min_length_bp=150)["call"] == "virus"


def test_records_without_chunks_keep_their_place() -> None:
    chunks = make_chunks((0.1, 0.9), None)
    calls = call_records(chunks, np.array([0, 0, 1, 1, 2, 2]), np.array([0, 90, 2, 90, 0]))
    assert calls.call.tolist() == ["none", "virus", "none", "none", "none"]
    assert calls.reason.tolist() == ["empty", "-", "too_short", "no_open_frame", "empty"]
    assert calls.num_chunks.tolist() == [0, 1, 0, 1, 0]


def test_nothing_in_nothing_out() -> None:
    chunks = call_chunks(np.empty((0, 2), F32), np.array([0]))
    calls = call_records(chunks, np.array([0]), np.array([], np.int64))
    assert all(len(column) == 0 for column in (*chunks, *calls))


def test_a_million_frames_take_less_than_two_seconds() -> None:
    random = np.random.default_rng(2)
    num_frames = random.integers(0, 5, 500_000)
    first = np.concatenate([[0], np.cumsum(num_frames)])
    scores = random.random((first[-1], 2), F32)
    start = time.perf_counter()
    chunks = call_chunks(scores, first)
    call_records(chunks, np.arange(len(first)), np.full(len(num_frames), 150))
    assert time.perf_counter() - start < 2


def test_frames_without_scores_are_left_out_and_their_records_say_so():
    unknown = [np.nan, np.nan]
    scores = np.array([[0.3, 0.7], unknown, unknown, [0.9, 0.1]], dtype=np.float32)
    # Record 0: chunks with frames 0-1 and 2; record 1: frame 3; record 2: nothing open.
    chunks = call_chunks(scores, np.array([0, 2, 3, 4, 4]))
    assert chunks.is_open.tolist() == [True, False, True, False]
    assert chunks.num_unscored.tolist() == [1, 1, 0, 0]
    records = call_records(chunks, np.array([0, 2, 3, 4]), np.array([900, 400, 400]))
    assert records.num_frames.tolist() == [3, 1, 0]
    assert records.num_open_chunks.tolist() == [1, 1, 0]
    assert records.call.tolist() == ["virus", "others", "none"]
    assert records.reason.tolist() == ["out_of_memory", "-", "no_open_frame"]


def test_a_record_without_any_score_has_no_call():
    chunks = call_chunks(np.full((1, 2), np.nan, np.float32), np.array([0, 1]))
    records = call_records(chunks, np.array([0, 1]), np.array([500]))
    assert records.call.tolist() == ["none"]
    assert records.reason.tolist() == ["out_of_memory"]
    assert np.isnan(records.score[0])


def test_no_threshold_is_no_virus() -> None:
    value = np.array([0.3, 0.6, np.nan])
    assert make_calls(value, 0.6).tolist() == ["others", "virus", "none"]
    assert make_calls(value, None).tolist() == ["others", "others", "none"]


def test_the_scored_share_is_that_of_chunks() -> None:
    chunks = make_chunks((0.1, 0.9), None, None, None)
    records = call_records(chunks, np.array([0, 3, 4, 4]), np.array([1200, 500, 0]))
    np.testing.assert_array_equal(records.scored_share, [1 / 3, 0, np.nan])

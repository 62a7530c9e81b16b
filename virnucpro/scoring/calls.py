"""Turns the scores of frames into calls of chunks, and these into calls of records.

The rule for chunks is the original VirNucPro's; docs/results.md explains the rule for records.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from virnucpro.backend.arrays import BoolArray, Float32Array, Float64Array, Int64Array

CODON_BP = 3

# Arrays of Python objects take 8 bytes an entry; NumPy's text arrays would take up to 52.
Words = np.ndarray[Any, np.dtype[np.object_]]

_CALLS: Words = np.array(["none", "others", "virus"], dtype=object)
_REASONS: Words = np.array(
    ["-", "empty", "too_short", "out_of_memory", "no_open_frame"], dtype=object
)
SCREEN = "screen"
_JUDGES: Words = np.array(["-", "classifier"], dtype=object)
NO_STRETCH = np.array("no_stretch", dtype=object)

# The smallest normal float32, which keeps the logarithm of a probability of 0 finite.
_MIN_PROBABILITY = np.finfo(np.float32).tiny


class ChunkCalls(NamedTuple):
    """One entry for each chunk, in input order.

    Attributes:
        is_open: Whether the chunk has a scored open frame; the scores of other chunks are NaN.
        num_frames: Open frames of the chunk.
        num_unscored: Open frames of the chunk that have no scores.
        max_others: float32, the maximum P(others) of its frames.
        max_virus: float32, the maximum P(virus) of its frames.
    """

    is_open: BoolArray
    num_frames: Int64Array
    num_unscored: Int64Array
    max_others: Float32Array
    max_virus: Float32Array

    @property
    def is_virus(self) -> BoolArray:
        """The original's call, bool (C,); False without a score."""
        return self.max_virus >= self.max_others


class RecordCalls(NamedTuple):
    """One entry for each record, in input order. The names are the columns of `records.tsv`.

    Attributes:
        num_chunks: Chunks that the record was cut into.
        num_open_chunks: Chunks with a scored open frame.
        num_frames: Open frames of the record.
        num_viral_chunks: Open chunks that are called viral.
        score: float64, the mean score of the open chunks, or of a head over chunks the sigmoid of
            their mean logit; NaN if there is no call.
        call: `virus`, `others`, or `none`; `decide_calls` replaces what the score alone says.
        reason: Why there is no call: `empty`, `too_short`, and `no_open_frame` or `no_stretch` by
            the frame rule; `out_of_memory` if frames of the record have no scores, even if other
            frames give it a call; else `-`.
        probability: float64, the probability that the record is viral; NaN if there is no call or
            no calibration.
        scored_share: float64, `num_open_chunks / num_chunks`; NaN without chunks.
        confidence: How sure the call is: `high`, `medium` or `low`; `-` without a probability.
        judged_by: What scored the record: `classifier`, or `screen`; `-` if there is no call.
    """

    num_chunks: Int64Array
    num_open_chunks: Int64Array
    num_frames: Int64Array
    num_viral_chunks: Int64Array
    score: Float64Array
    call: Words
    reason: Words
    probability: Float64Array
    scored_share: Float64Array
    confidence: Words
    judged_by: Words


def call_chunks(frame_scores: Float32Array, chunk_first_frame: Int64Array) -> ChunkCalls:
    """Return the original VirNucPro's call for each of C chunks.

    Args:
        frame_scores: float32 (F, 2), P(others) and P(virus) of each open frame; NaN if unknown.
        chunk_first_frame: int64 (C + 1); chunk c has the frames from entry c to entry c + 1.
    """
    num_frames = np.diff(chunk_first_frame)
    has_frames = num_frames > 0
    # Leave out chunks without frames: reduceat would give them the frame of their neighbour.
    first_frames = chunk_first_frame[:-1][has_frames]
    max_scores = np.full((len(num_frames), 2), np.nan, np.float32)
    num_unscored = np.zeros(len(num_frames), np.int64)
    if len(first_frames):
        # fmax, and not maximum: a frame without a score must not hide those that have one.
        max_scores[has_frames] = np.fmax.reduceat(frame_scores, first_frames, axis=0)
        num_unscored[has_frames] = np.add.reduceat(np.isnan(frame_scores[:, 0]), first_frames)
    # Columns of one array lie apart in memory. Each is read many times from here on.
    max_others, max_virus = np.ascontiguousarray(max_scores.T)
    return ChunkCalls(
        is_open=num_frames > num_unscored,
        num_frames=num_frames,
        num_unscored=num_unscored,
        max_others=max_others,
        max_virus=max_virus,
    )


def call_chunk_logits(
    logits: Float32Array, num_frames: Int64Array, num_unscored: Int64Array
) -> ChunkCalls:
    """Return the calls of C chunks that a classifier scored as a whole.

    `max_virus` is the probability and `max_others` is its complement, each computed from the logit.

    Args:
        logits: float32 (C,), the logit of "viral"; NaN for chunks without a score.
        num_frames: int64 (C,), the stretches of each chunk.
        num_unscored: int64 (C,), those without an embedding.
    """
    max_virus, max_others = (
        sigmoid(sign * logits.astype(np.float64)).astype(np.float32) for sign in (1, -1)
    )
    return ChunkCalls(
        is_open=~np.isnan(logits),
        num_frames=num_frames,
        num_unscored=num_unscored,
        max_others=max_others,
        max_virus=max_virus,
    )


def call_records(
    chunks: ChunkCalls,
    record_first_chunk: Int64Array,
    length_bp: Int64Array,
    min_length_bp: int = 0,
) -> RecordCalls:
    """Return R records with their scores, called viral from a score of 0.5 on.

    Args:
        chunks: The calls of all chunks.
        record_first_chunk: int64 (R + 1); record r has the chunks from entry r to entry r + 1.
        length_bp: int64 (R,), the lengths of the records.
        min_length_bp: Shorter records get no call.
    """
    num_records = len(length_bp)
    num_chunks = np.diff(record_first_chunk)
    record_of_chunk = np.repeat(np.arange(num_records), num_chunks)

    def sum_over_chunks(values: npt.NDArray[Any]) -> Float64Array:
        # Not reduceat: it would give records without chunks the chunk of their neighbour.
        sums = np.bincount(record_of_chunk, weights=values, minlength=num_records)
        return np.asarray(sums, np.float64)

    num_open_chunks = sum_over_chunks(chunks.is_open)
    # A record shorter than one codon cannot be translated, whatever the user asks for.
    is_too_short = length_bp < max(min_length_bp, CODON_BP)
    is_unscored = sum_over_chunks(chunks.num_unscored) > 0
    reason_code = np.select(
        [length_bp == 0, is_too_short, is_unscored, num_open_chunks == 0], [1, 2, 3, 4], default=0
    )
    has_call = (num_open_chunks > 0) & ~is_too_short
    # Scores of other chunks are NaN, which a weight of zero would not remove.
    total = sum_over_chunks(np.where(chunks.is_open, score_chunks(chunks), 0.0))
    score = _divide_where(total, num_open_chunks, has_call)
    return RecordCalls(
        num_chunks=num_chunks,
        num_open_chunks=num_open_chunks.astype(np.int64),
        num_frames=sum_over_chunks(chunks.num_frames).astype(np.int64),
        num_viral_chunks=sum_over_chunks(chunks.is_virus).astype(np.int64),
        score=score,
        call=make_calls(score, 0.5),
        reason=_REASONS[reason_code],
        probability=np.full(num_records, np.nan),
        scored_share=share_scored(num_open_chunks, num_chunks),
        confidence=np.full(num_records, "-", dtype=object),
        judged_by=_JUDGES[has_call.astype(int)],
    )


def take_screened(
    records: RecordCalls, screened: RecordCalls, is_cellular: BoolArray
) -> RecordCalls:
    """Return the records, with the scores of the screen for those that it found cellular.

    Args:
        records: What the classifier says; it has not seen the cellular records.
        screened: What the screen says of all records.
        is_cellular: bool (R,), the records that the screen leaves out.
    """
    names = ("num_open_chunks", "num_viral_chunks", "score", "reason", "scored_share")
    taken = {
        name: np.where(is_cellular, getattr(screened, name), getattr(records, name))
        for name in names
    }
    judged_by = np.where(is_cellular, np.array(SCREEN, dtype=object), records.judged_by)
    return records._replace(**taken, judged_by=judged_by)


def call_by_mean_logit(
    records: RecordCalls, chunks: ChunkCalls, record_first_chunk: Int64Array
) -> RecordCalls:
    """Return the records with the scores that a classifier over chunks gives them.

    The score is the sigmoid of the mean logit of the scored chunks.

    Args:
        records: What `call_records` says of the chunks.
        chunks: The calls of all chunks.
        record_first_chunk: int64 (R + 1); record r has the chunks from entry r to entry r + 1.
    """
    num_records = len(records.call)
    record_of_chunk = np.repeat(np.arange(num_records), np.diff(record_first_chunk))[chunks.is_open]
    # float32 rounds a probability near 1 to 1. Its complement was stored, and keeps the difference.
    virus, others = (
        np.maximum(probability[chunks.is_open], _MIN_PROBABILITY).astype(np.float64)
        for probability in (chunks.max_virus, chunks.max_others)
    )
    logits = np.log(virus) - np.log(others)
    total = np.bincount(record_of_chunk, weights=logits, minlength=num_records)
    score = sigmoid(_divide_where(total, records.num_open_chunks, records.call != "none"))
    return records._replace(score=score, call=make_calls(score, 0.5))


def make_calls(value: Float64Array, threshold: float | None) -> Words:
    """Return `virus` from this value on, `others` below it, `none` for NaN; no virus for None."""
    is_virus = value >= (np.inf if threshold is None else threshold)
    return _CALLS[np.where(np.isnan(value), 0, 1 + is_virus)]


def share_scored(num_open_chunks: npt.NDArray[Any], num_chunks: npt.NDArray[Any]) -> Float64Array:
    """Return the share of each record's chunks that have a score; NaN without chunks."""
    return _divide_where(num_open_chunks, num_chunks, num_chunks > 0)


def _divide_where(
    dividend: npt.NDArray[Any], divisor: npt.NDArray[Any], is_known: BoolArray
) -> Float64Array:
    quotient = np.full(len(divisor), np.nan)
    np.divide(dividend, divisor, out=quotient, where=is_known)
    return quotient


def score_chunks(chunks: ChunkCalls) -> Float64Array:
    """Return the viral score of each chunk in [0, 1]; NaN for chunks without a scored frame.

    The score is at least 0.5 exactly if the chunk `is_virus`. This needs float64: two float32
    maxima that differ do so by at least 2**-24 of their size, which is far above the rounding of
    float64, and equal maxima give 0.5 without rounding. In float32, rounding could change a call.
    """
    max_virus = chunks.max_virus.astype(np.float64)
    return max_virus / (max_virus + chunks.max_others)


def sigmoid(logits: Float64Array) -> Float64Array:
    """Return the probability of each logit."""
    # No exponential overflows; tanh would round small probabilities to 0.
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1.0, small) / (1 + small), np.float64)

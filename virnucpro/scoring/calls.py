"""From scores of open frames to calls of chunks, and from those to calls of records.

The rule for a chunk is the original VirNucPro's; docs/results.md explains the one for a record.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

CODON_BP = 3

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
# Arrays of Python objects: 8 bytes an entry where NumPy's text arrays take up to 52.
Words = np.ndarray[Any, np.dtype[np.object_]]

_CALLS: Words = np.array(["none", "others", "virus"], dtype=object)
_REASONS: Words = np.array(
    ["-", "empty", "too_short", "out_of_memory", "no_open_frame"], dtype=object
)


class ChunkCalls(NamedTuple):
    """One entry for each chunk, in input order.

    Attributes:
        is_open: Whether the chunk has a scored open frame; the scores of others are NaN.
        num_frames: Its open frames.
        num_unscored: Those of its open frames without scores.
        max_others: float32, the largest P(others) of its frames.
        max_virus: float32, the largest P(virus) of its frames.
        is_virus: Whether `max_virus >= max_others`.
    """

    is_open: Bools
    num_frames: Ints
    num_unscored: Ints
    max_others: npt.NDArray[np.float32]
    max_virus: npt.NDArray[np.float32]
    is_virus: Bools


class RecordCalls(NamedTuple):
    """One entry for each record, in input order; named as the columns of `records.tsv`.

    Attributes:
        num_chunks: Chunks that the record was cut into.
        num_open_chunks: Those with an open frame.
        num_frames: Its open frames.
        num_viral_chunks: Open chunks that are called viral.
        score: float64, the mean of its open chunks' scores; NaN when there is no call.
        call: `virus`, `others`, or `none`.
        reason: Why there is no call: `empty`, `too_short` or `no_open_frame`; `out_of_memory` where
            frames of the record have no scores, also if the others give it a call; else `-`.
        probability: float64, that the record is viral; NaN when there is no call, or no calibration
            to tell it.
    """

    num_chunks: Ints
    num_open_chunks: Ints
    num_frames: Ints
    num_viral_chunks: Ints
    score: npt.NDArray[np.float64]
    call: Words
    reason: Words
    probability: npt.NDArray[np.float64]


def call_chunks(frame_scores: npt.NDArray[np.float32], chunk_first_frame: Ints) -> ChunkCalls:
    """Return the original VirNucPro's call for each of C chunks.

    Args:
        frame_scores: float32 (F, 2), P(others) and P(virus) of each open frame; NaN where they are
            not known.
        chunk_first_frame: int64 (C + 1); chunk c has the frames from its entry to the next.
    """
    num_frames = np.diff(chunk_first_frame)
    has_frames = num_frames > 0
    # Chunks without frames are left out: reduceat would give them their neighbour's frame.
    first_frames = chunk_first_frame[:-1][has_frames]
    max_scores = np.full((len(num_frames), 2), np.nan, np.float32)
    num_unscored = np.zeros(len(num_frames), np.int64)
    if len(first_frames):
        max_scores[has_frames] = np.fmax.reduceat(frame_scores, first_frames, axis=0)
        num_unscored[has_frames] = np.add.reduceat(np.isnan(frame_scores[:, 0]), first_frames)
    max_others, max_virus = np.ascontiguousarray(max_scores.T)
    return ChunkCalls(
        is_open=num_frames > num_unscored,
        num_frames=num_frames,
        num_unscored=num_unscored,
        max_others=max_others,
        max_virus=max_virus,
        is_virus=max_virus >= max_others,
    )


def call_records(
    chunks: ChunkCalls,
    record_first_chunk: Ints,
    length_bp: Ints,
    min_length_bp: int = 0,
    threshold: float = 0.5,
) -> RecordCalls:
    """Return the call for each of R records; probabilities are left to a calibration.

    Args:
        chunks: The calls of all chunks.
        record_first_chunk: int64 (R + 1); record r has the chunks from its entry to the next.
        length_bp: int64 (R,), the records' lengths.
        min_length_bp: Shorter records are not called.
        threshold: A record is called viral from this score on.
    """
    num_records = len(length_bp)
    num_chunks = np.diff(record_first_chunk)
    record_of_chunk = np.repeat(np.arange(num_records), num_chunks)

    def sum_over_chunks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        sums = np.bincount(record_of_chunk, weights=values, minlength=num_records)
        return np.asarray(sums, np.float64)

    num_open_chunks = sum_over_chunks(chunks.is_open)
    is_too_short = length_bp < max(min_length_bp, CODON_BP)
    is_unscored = sum_over_chunks(chunks.num_unscored) > 0
    reason_code = np.select(
        [length_bp == 0, is_too_short, is_unscored, num_open_chunks == 0], [1, 2, 3, 4], default=0
    )
    has_call = (num_open_chunks > 0) & ~is_too_short
    score = np.full(num_records, np.nan)
    total = sum_over_chunks(np.where(chunks.is_open, score_chunks(chunks), 0.0))
    np.divide(total, num_open_chunks, out=score, where=has_call)
    call_code = np.where(has_call, 1 + (score >= threshold), 0)
    return RecordCalls(
        num_chunks=num_chunks,
        num_open_chunks=num_open_chunks.astype(np.int64),
        num_frames=sum_over_chunks(chunks.num_frames).astype(np.int64),
        num_viral_chunks=sum_over_chunks(chunks.is_virus).astype(np.int64),
        score=score,
        call=_CALLS[call_code],
        reason=_REASONS[reason_code],
        probability=np.full(num_records, np.nan),
    )


def recall_records(records: RecordCalls, threshold: float | None) -> RecordCalls:
    """Return the records with new calls: viral from this probability on, or none for None."""
    has_call = records.call != "none"
    is_virus = np.zeros(len(has_call), np.bool_)
    if threshold is not None:
        is_virus = records.probability >= threshold
    return records._replace(call=_CALLS[np.where(has_call, 1 + is_virus, 0)])


def score_chunks(chunks: ChunkCalls) -> npt.NDArray[np.float64]:
    """Return each chunk's viral score in [0, 1], NaN for chunks without open frame.

    The score is at least 0.5 exactly when the chunk `is_virus`. This holds in float64 because the
    maxima are float32: two that differ do so by 2**-24 of their size, far above rounding; equal
    ones give 0.5 without rounding. In float32 the last bit could turn a call.
    """
    max_virus = chunks.max_virus.astype(np.float64)
    return max_virus / (max_virus + chunks.max_others)

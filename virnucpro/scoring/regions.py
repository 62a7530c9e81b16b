"""Finds the viral regions of records by a hidden Markov model over their chunks.

Shapes: R records, C chunks, G regions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array
from virnucpro.scoring.calibration import Calibration, logit
from virnucpro.scoring.calls import RecordCalls, sigmoid
from virnucpro.scoring.decisions import round_shares
from virnucpro.scoring.region_model import REGION_MODEL, RegionModel
from virnucpro.sequences.frame_store import FrameStore

# Logits of scores of 0 and 1 would not be finite.
_MIN_SCORE = 1e-15
_EVIDENCE_DIGITS = 4


class ChunkEvidence(NamedTuple):
    """What the tables of chunks and regions are made of.

    Attributes:
        score: float64 (C,), rounded or not; NaN for chunks without a score.
        calibration: Of the classifier; None if it has none.
        model: What finds the regions.
        by_logit: Whether a head over chunks made the scores, so that means are those of logits.
    """

    score: Float64Array
    calibration: Calibration | None
    model: RegionModel = REGION_MODEL
    by_logit: bool = False


class ChunkScores(NamedTuple):
    """What is known of each chunk, in input order.

    Attributes:
        score: float64 (C,), rounded as in `chunks.tsv`; NaN without a score.
        probability: float64 (C,), the probability that a record of this one chunk is viral; NaN
            without a score or a calibration.
        evidence: float64 (C,), by which regions are found: the log-odds of the probability if half
            of all records are viral. Without a calibration, it is the log-odds of the score.
    """

    score: Float64Array
    probability: Float64Array
    evidence: Float64Array


class Regions(NamedTuple):
    """The viral regions of all records, in the order of the records and of their places.

    Attributes:
        record: int64 (G,), the index of each region's record.
        number: int64 (G,), its number in its record, from 1.
        start: int64 (G,), its first base, from 0.
        end: int64 (G,), the base behind its last one.
        is_provirus: bool (G,), whether it lies in a record that is not called viral.
        num_open_chunks: int64 (G,), the chunks with a score in it.
        score: float64 (G,), made of its chunks as the score of a record is.
        probability: float64 (G,), that of a record with this score and as many chunks; NaN without
            a calibration.
    """

    record: Int64Array
    number: Int64Array
    start: Int64Array
    end: Int64Array
    is_provirus: BoolArray
    num_open_chunks: Int64Array
    score: Float64Array
    probability: Float64Array


def describe_chunks(chunks: ChunkEvidence, viral_share: float | None) -> ChunkScores:
    """Return the rounded scores of C chunks, and what follows from them.

    Args:
        chunks: What is known of them; rounded scores stay as they are.
        viral_share: The share of viral records that probabilities assume.
    """
    score, calibration = round_shares(chunks.score), chunks.calibration
    one = np.ones(len(score), np.int64)
    if calibration is None:
        probability, evidence = np.full(len(score), np.nan), _logit(score)
    else:
        probability = round_shares(calibration.probabilities(score, one, viral_share))
        evidence = _logit(calibration.probabilities(score, one, 0.5))
    # The digits of `chunks.tsv`, so that `call` finds the regions that `predict` found.
    return ChunkScores(score, probability, np.round(evidence, _EVIDENCE_DIGITS))


def find_viral_chunks(
    evidence: Float64Array, record_first_chunk: Int64Array, model: RegionModel = REGION_MODEL
) -> BoolArray:
    """Return which chunks are viral on the likeliest path of the hidden Markov model: bool (C,).

    A chunk without a score says nothing, and goes with its neighbours.

    Args:
        evidence: float64 (C,), for "viral" in each chunk; NaN without a score.
        record_first_chunk: int64 (R + 1); record r has the chunks from entry r to entry r + 1.
        model: The numbers of the model.
    """
    # How much better the best path that is viral in a chunk is than the best that is not.
    # Clipped, so that a single chunk can neither make nor break a region.
    lead = np.clip(evidence - model.least, -model.most, model.most)
    lead[np.isnan(lead)] = 0
    # Records side by side, those with most chunks first: step i works on the i-th chunk of each.
    num_chunks = np.diff(record_first_chunk)
    order = np.argsort(-num_chunks, kind="stable")
    first = record_first_chunk[:-1][order]
    steps = np.arange(1, num_chunks.max(initial=0))
    num_active = np.searchsorted(-num_chunks[order], -steps).tolist()
    for step, active in enumerate(num_active, start=1):
        chunk = first[:active] + step
        lead[chunk] += np.clip(lead[chunk - 1], -model.switch, model.switch)
    # The path is read backwards: each chunk but the last pays to differ from the next.
    is_viral = lead > 0
    for step, active in reversed(list(enumerate(num_active))):
        chunk = first[:active] + step
        least = np.where(is_viral[chunk + 1], -model.switch, model.switch)
        is_viral[chunk] = lead[chunk] > least
    return is_viral


def find_spans(
    evidence: Float64Array, record_first_chunk: Int64Array, model: RegionModel = REGION_MODEL
) -> tuple[Int64Array, Int64Array]:
    """Return the viral parts: the first chunk of each and the chunk behind it, int64 (n,).

    Args:
        evidence: float64 (C,), for "viral" in each chunk; NaN without a score.
        record_first_chunk: int64 (R + 1); record r has the chunks from entry r to entry r + 1.
        model: The numbers of the model.
    """
    relative = evidence - _find_background(evidence, record_first_chunk, model)
    return _find_runs(find_viral_chunks(relative, record_first_chunk, model), record_first_chunk)


def _find_background(
    evidence: Float64Array, record_first_chunk: Int64Array, model: RegionModel
) -> Float64Array:
    """Return what is subtracted from the evidence of each chunk: float64 (C,)."""
    num_chunks = np.diff(record_first_chunk)
    record = np.repeat(np.arange(len(num_chunks)), num_chunks)
    # NaN goes to the end of each record.
    ordered = evidence[np.lexsort((evidence, record))]
    num_scored = np.bincount(record[~np.isnan(evidence)], minlength=len(num_chunks))
    # Zero where no chunk has a score: there is nothing to subtract from.
    middle = np.zeros(len(num_chunks))
    known = np.flatnonzero(num_scored)
    low = record_first_chunk[known] + (num_scored[known] - 1) // 2
    high = record_first_chunk[known] + num_scored[known] // 2
    middle[known] = (ordered[low] + ordered[high]) / 2
    # A record whose median counts for "viral" is mostly virus, and has no such background.
    return model.background * np.minimum(middle, model.least)[record]


def find_regions(
    store: FrameStore,
    chunks: ChunkScores,
    records: RecordCalls,
    known: ChunkEvidence,
    viral_share: float | None,
) -> Regions:
    """Return the viral regions of all records.

    A record that is called viral is one region if regions make up half of it, or if none is long
    enough. Other records have only regions that are shorter than the record.

    Args:
        store: The records and their chunks.
        chunks: The scores of the chunks.
        records: The calls of the records.
        known: What the scores were made of.
        viral_share: The share of viral records that probabilities assume.
    """
    first, stop = find_spans(chunks.evidence, store.record_first_chunk, known.model)
    record = store.find_records(first)
    length = store.locate_cells(stop - 1)[1] - store.locate_cells(first)[0]
    is_part = (
        (length >= known.model.min_length_bp)
        & (length < store.record_lengths[record])
        & (records.call != "none")[record]
    )
    first, stop, record, length = (each[is_part] for each in (first, stop, record, length))
    # Half of the bases decides, not of the chunks: chunks overlap, and the last may be short.
    covered = np.bincount(record, weights=length, minlength=store.num_records)
    is_whole = (2 * covered >= store.record_lengths) | (covered == 0)
    # All of the record is the virus, so its region is the record.
    whole = np.flatnonzero(is_whole & (records.call == "virus"))
    is_part = ~np.isin(record, whole)
    first = np.concatenate([first[is_part], store.record_first_chunk[whole]])
    stop = np.concatenate([stop[is_part], store.record_first_chunk[whole + 1]])
    # Chunks are numbered over all records, so this is the order of records and of places in them.
    order = np.argsort(first)
    return _measure_regions(store, chunks, records, (first[order], stop[order]), known, viral_share)


def _find_runs(
    is_viral: BoolArray, record_first_chunk: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Return the first chunk of each run of viral chunks of a record, and the chunk behind it."""
    # The entry behind the last chunk stands for the end of the last record.
    begins_record = np.zeros(len(is_viral) + 1, np.bool_)
    begins_record[record_first_chunk] = True
    padded = np.concatenate([[False], is_viral, [False]])
    first = np.flatnonzero(is_viral & (begins_record[:-1] | ~padded[:-2]))
    last = np.flatnonzero(is_viral & (begins_record[1:] | ~padded[2:]))
    return first, last + 1


def _measure_regions(
    store: FrameStore,
    chunks: ChunkScores,
    records: RecordCalls,
    spans: tuple[Int64Array, Int64Array],
    known: ChunkEvidence,
    viral_share: float | None,
) -> Regions:
    """Return the regions between a first chunk and the chunk behind the last one each."""
    first, stop = spans
    record = store.find_records(first)
    start, end = store.locate_cells(first)[0], store.locate_cells(stop - 1)[1]
    is_scored = ~np.isnan(chunks.score)
    # As the score of a record is made.
    value = np.where(is_scored, _logit(chunks.score) if known.by_logit else chunks.score, 0)
    num_scored = _sum_spans(is_scored.astype(np.int64), first, stop)
    mean = _sum_spans(value, first, stop) / num_scored
    # The whole of a record has the score of the record to the last digit.
    is_whole = end - start == store.record_lengths[record]
    mean = round_shares(sigmoid(mean) if known.by_logit else mean)
    score = np.where(is_whole, records.score[record], mean)
    probability = np.full(len(record), np.nan)
    if known.calibration is not None:
        found = known.calibration.probabilities(score, num_scored, viral_share)
        probability = round_shares(found)
    is_first = np.diff(record, prepend=-1) != 0
    place = np.arange(len(record))
    return Regions(
        record=record,
        # The largest index so far at which a record began, so numbers begin at 1 in each record.
        number=place - np.maximum.accumulate(np.where(is_first, place, 0)) + 1,
        start=start,
        end=end,
        is_provirus=records.call[record] != "virus",
        num_open_chunks=num_scored,
        score=score,
        probability=probability,
    )


def _sum_spans(value: npt.NDArray[Any], first: Int64Array, stop: Int64Array) -> npt.NDArray[Any]:
    """Return the sum of each span alone, so that no score depends on what lies before it."""
    if not len(first):
        return value[:0]
    # The last span may end behind the last value, so a 0 stands there.
    # reduceat sums between all neighbours of this list: every second sum is a span.
    edges = np.stack([first, stop], axis=1).ravel()
    return np.asarray(np.add.reduceat(np.append(value, 0), edges)[::2])


def _logit(score: Float64Array) -> Float64Array:
    return logit(np.clip(score, _MIN_SCORE, 1 - _MIN_SCORE))

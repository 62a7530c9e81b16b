"""Calls of records that only have scores."""

from __future__ import annotations

import numpy as np

from virnucpro.scoring.calls import RecordCalls


def make_records(score: list[float], num_open_chunks: list[int] | int = 1) -> RecordCalls:
    number = len(score)
    score_N = np.array(score, np.float64)
    unknown = np.full(number, np.nan)
    return RecordCalls(
        num_chunks=np.full(number, 20),
        num_open_chunks=np.broadcast_to(num_open_chunks, number).astype(np.int64),
        num_frames=np.full(number, 20),
        num_viral_chunks=np.zeros(number, np.int64),
        score=score_N,
        call=np.full(number, "", object),
        reason=np.where(np.isnan(score_N), "no_open_frame", "-").astype(object),
        probability=unknown,
        scored_share=np.broadcast_to(num_open_chunks, number) / 20,
        confidence=np.full(number, "-", object),
        judged_by=np.full(number, "classifier", object),
    )

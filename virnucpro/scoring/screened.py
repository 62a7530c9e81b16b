"""What a screen found: records that are cellular beyond doubt, and what it expects to lose.

Shapes: R records, F rows of the frame store.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array
from virnucpro.embedding.passes import Pass
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.calls import RecordCalls
from virnucpro.sequences.frame_store import FrameStore


class Screened(NamedTuple):
    """What the screen found.

    Attributes:
        is_cellular: bool (R,), the records that need no other judge.
        records: What the screen says of all records; None in all processes but the main one.
        calibration: The screen's.
        passes: The passes of the screen.
        about: What run.json says of the screen.
    """

    is_cellular: BoolArray
    records: RecordCalls | None
    calibration: Calibration
    passes: list[Pass]
    about: dict[str, Any]

    def rows_to_judge(self, store: FrameStore) -> Int64Array:
        """Return the rows of the records that the large models judge: int64, sorted."""
        # From records to chunks to rows, because a row knows neither of them by itself.
        chunk_is_cellular = np.repeat(self.is_cellular, np.diff(store.record_first_chunk))
        row_is_cellular = np.repeat(chunk_is_cellular, np.diff(store.chunk_first_frame))
        return np.flatnonzero(~row_is_cellular)


def choose_bound(probability: Float64Array, max_loss: float, ceiling: float) -> float:
    """Return the bound below which records are left out.

    It is the highest one at which the records below it are expected to hold at most `max_loss` of
    all viral records. The expected number of viral records is the sum of the probabilities.

    Args:
        probability: float64 (R,), the probability that each record is viral; NaN without one.
        max_loss: The share of the viral records that may be lost.
        ceiling: The bound is never higher.
    """
    # The least viral first: leaving them out costs the least for each record that is saved.
    ascending = np.sort(probability[~np.isnan(probability)])
    allowed = np.cumsum(ascending) <= max_loss * ascending.sum()
    # Equal probabilities are left out together or not at all: the bound is the first one to stay.
    stays = ascending[~allowed]
    return min(float(stays[0]) if len(stays) else 0.0, ceiling)


def expect_loss(probability: Float64Array, is_cellular: BoolArray) -> float:
    """Return the expected share of the viral records that is left out."""
    total = np.nansum(probability)
    return float(np.nansum(probability[is_cellular]) / total) if total else 0.0

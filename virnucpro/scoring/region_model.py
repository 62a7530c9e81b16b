"""The numbers by which viral regions are found; a classifier's file may have its own."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RegionModel:
    """The numbers of the hidden Markov model; tools/fit_regions.py finds them.

    Attributes:
        least: The evidence that a chunk must exceed to count for "viral".
        most: The largest count of a chunk for or against "viral".
        switch: What it costs to enter a region or to leave it.
        background: The share of the median evidence of a record that is subtracted from its
            chunks: all chunks of some bacteria look rather viral.
        min_length_bp: Shorter regions inside a record are left out.

    Raises:
        ValueError: A number is impossible.
    """

    least: float = 0.5
    most: float = 2.0
    switch: float = 8.0
    background: float = 0.5
    min_length_bp: int = 3000

    def __post_init__(self) -> None:
        numbers = (self.least, self.most, self.switch, self.background)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a region model with numbers that are not finite")
        if min(self.most, self.switch, self.background, self.min_length_bp) < 0:
            raise ValueError("a region model with numbers out of range")


REGION_MODEL = RegionModel()
"""Fitted to an earlier small model, with chunks of 500 bp, and a start for other classifiers."""

"""The numbers by which viral regions are found; a classifier's file may have its own.

Shapes: N chunks, Q numbers of a DNA embedding, P numbers of a protein embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from virnucpro.backend.arrays import Float32Array, Float64Array
from virnucpro.scoring.record_model import weigh_columns


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
        weights: What makes the evidence of a chunk: the Q + P weights of its DNA embedding and of
            the mean of its protein embeddings, that of its logit, and a constant. If empty, the
            evidence is the log-odds of the chunk.

    Raises:
        ValueError: A number is impossible.
    """

    least: float = 0.5
    most: float = 2.0
    switch: float = 8.0
    background: float = 0.5
    min_length_bp: int = 3000
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # A file has a list.
        object.__setattr__(self, "weights", tuple(self.weights))
        numbers = (self.least, self.most, self.switch, self.background, *self.weights)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a region model with numbers that are not finite")
        if min(self.most, self.switch, self.background, self.min_length_bp) < 0:
            raise ValueError("a region model with numbers out of range")

    def weigh(self, embeddings_NE: Float64Array, logits_N: Float32Array) -> Float64Array:
        """Return float64 (N,): the evidence that each chunk is viral, by the weights.

        Args:
            embeddings_NE: float64 (N, Q + P), what `join_embeddings` returns of the chunks.
            logits_N: float32, what the classifier says of each chunk.
        """
        columns = np.concatenate([embeddings_NE, logits_N[:, None]], axis=1, dtype=np.float64)
        return weigh_columns(columns, self.weights)


REGION_MODEL = RegionModel()
"""Fitted to the log-odds of the small model, and a start for those of others."""

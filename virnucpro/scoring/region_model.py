"""The numbers by which viral regions are found; a classifier's file may have its own.

Shapes: N chunks, S stretches of a chunk, Q numbers of a DNA embedding, P numbers of a protein
embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float32Array, Float64Array


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

    def weigh(
        self,
        dna_NQ: Float32Array,
        protein_NSP: Float32Array,
        is_stretch_NS: BoolArray,
        logits_N: Float32Array,
    ) -> Float64Array:
        """Return float64 (N,): the evidence that each chunk is viral, by the weights.

        Args:
            dna_NQ: float32, the embedding of each chunk's DNA.
            protein_NSP: float32, the embeddings of its stretches; zeros where there is none.
            is_stretch_NS: Where there is a stretch, at least one for each chunk.
            logits_N: float32, what the classifier says of each chunk.
        """
        protein_NP = protein_NSP.sum(1) / is_stretch_NS.sum(1, keepdims=True)
        columns = np.concatenate([dna_NQ, protein_NP, logits_N[:, None]], axis=1, dtype=np.float64)
        # Not a matrix product: its sums depend on the number of rows.
        evidence_N: Float64Array = (columns * self.weights[:-1]).sum(1) + self.weights[-1]
        return evidence_N


REGION_MODEL = RegionModel()
"""Fitted to the log-odds of the small model, and a start for those of others."""

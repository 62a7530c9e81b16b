"""What the embeddings of its chunks add to the score of a record; a classifier's file may have it.

Shapes: N chunks, S stretches of a chunk, R records, Q numbers of a DNA embedding, P numbers of a
protein embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float32Array, Float64Array, Int64Array


@dataclass(frozen=True, slots=True)
class RecordModel:
    """Weights for the mean embedding of a record; tools/mini/finish.py fits them.

    Some signals are too weak in one chunk, but clear in the mean of many: the proteins of a whole
    contig look like those of viruses or not. So what the weights say counts more with more chunks:
    not at all for one chunk, and in full from `most_chunks` on.

    Attributes:
        weights: The Q + P weights of the DNA embedding of a chunk and of the mean of its protein
            embeddings, and a constant.
        most_chunks: From so many scored chunks on, the weights count in full.

    Raises:
        ValueError: A number is impossible.
    """

    weights: tuple[float, ...]
    most_chunks: int

    def __post_init__(self) -> None:
        # A file has a list.
        object.__setattr__(self, "weights", tuple(self.weights))
        if not all(math.isfinite(number) for number in self.weights):
            raise ValueError("a record model with numbers that are not finite")
        if type(self.most_chunks) is not int or self.most_chunks < 2:
            raise ValueError("a record model with numbers out of range")

    def weigh(self, embeddings_NE: Float64Array) -> Float64Array:
        """Return float64 (N,): what the weights say of each chunk.

        Args:
            embeddings_NE: float64 (N, Q + P), what `join_embeddings` returns of the chunks.
        """
        return weigh_columns(embeddings_NE, self.weights)

    def count(self, num_chunks_R: Int64Array) -> Float64Array:
        """Return float64 (R,): how much the weights count for records of so many scored chunks."""
        chunks_R = np.clip(num_chunks_R, 1, self.most_chunks)
        return np.asarray(np.log(chunks_R) / math.log(self.most_chunks), np.float64)


def join_embeddings(
    dna_NQ: Float32Array, protein_NSP: Float32Array, is_stretch_NS: BoolArray
) -> Float64Array:
    """Return float64 (N, Q + P): the DNA embedding of each chunk, and the mean of its proteins'.

    Args:
        dna_NQ: float32, the embedding of each chunk's DNA.
        protein_NSP: float32, the embeddings of its stretches; zeros where there is none.
        is_stretch_NS: Where there is a stretch, at least one for each chunk.
    """
    protein_NP = protein_NSP.sum(1) / is_stretch_NS.sum(1, keepdims=True)
    return np.concatenate([dna_NQ, protein_NP], axis=1, dtype=np.float64)


def weigh_columns(columns_NK: Float64Array, weights: tuple[float, ...]) -> Float64Array:
    """Return float64 (N,): the weighted sum of each row, and the last weight as a constant."""
    # Not a matrix product: its sums depend on the number of rows.
    return np.asarray((columns_NK * weights[:-1]).sum(1) + weights[-1], np.float64)

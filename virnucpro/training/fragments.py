"""Held-out chunks joined to pieces of several lengths, which stand for contigs of these lengths.

Training sequences are often whole genomes, and what is to be classified is reads and contigs. Since
a record's score is the mean of its chunks' scores, every stretch of neighbouring chunks is scored
without embedding anything again.

Shapes: C chunks, N stretches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from virnucpro.reports.metrics import Predictions
from virnucpro.training.corpus import Corpus, Ints
from virnucpro.training.splits import HELD_OUT_RUN, balance

SIZES = (1, 2, 4, 8, HELD_OUT_RUN)
"""Chunks of a stretch, at most; it has more than half as many."""

Floats = npt.NDArray[np.float64]


def name_size(size: int) -> str:
    """Return how a report calls stretches of one of `SIZES`: `1 chunk`, `5-8 chunks`."""
    fewest = size // 2 + 1
    return "1 chunk" if size == 1 else f"{fewest}-{size} chunks" if fewest < size else "2 chunks"


class Stretches(NamedTuple):
    """Stretches of all sizes, one after the other.

    Attributes:
        size: int64 (N,), which of `SIZES`.
        record: int64 (N,), the record that each is from.
        score: float64 (N,), the mean of its open chunks' scores.
        num_open_chunks: int64 (N,), at least 1.
    """

    size: Ints
    record: Ints
    score: Floats
    num_open_chunks: Ints


def join_chunks(corpus: Corpus, chunks: Ints, chunk_score: Floats) -> Stretches:
    """Return the stretches of held-out chunks.

    Each size covers every record from its first chunk on. A stretch at a record's end that is no
    longer than half of a size belongs to a smaller one.

    Args:
        corpus: The records.
        chunks: int64 (C,), usable chunks.
        chunk_score: float64 (C,), the score of each.
    """
    return Stretches._make(
        np.concatenate(columns)
        for columns in zip(
            *(_join(corpus, chunks, chunk_score, size) for size in SIZES), strict=True
        )
    )


def _join(corpus: Corpus, chunks: Ints, chunk_score: Floats, size: int) -> Stretches:
    record, number = corpus.chunk_record[chunks], corpus.chunk_number[chunks] // size
    num_chunks = np.minimum(corpus.num_chunks[record] - number * size, size)
    is_long = num_chunks > size // 2
    keys, stretch = np.unique(record[is_long] << 32 | number[is_long], return_inverse=True)
    num_open_chunks = np.bincount(stretch, minlength=len(keys))
    total = np.bincount(stretch, chunk_score[is_long], len(keys))
    return Stretches(np.full(len(keys), size), keys >> 32, total / num_open_chunks, num_open_chunks)


def weigh(corpus: Corpus, stretches: Stretches) -> Floats:
    """Return float64 (N,): weights under which all sizes count alike, and within each the classes.

    Stretches of a size that only viral or only other records reach have the weight 0.
    """
    class_N = corpus.record_class[stretches.record]
    weight = np.zeros(len(class_N))
    for size in SIZES:
        chosen = stretches.size == size
        kinds = corpus.is_viral[class_N[chosen]]
        if kinds.any() and not kinds.all():
            weight[chosen] = balance(class_N[chosen], corpus.is_viral)
    weight *= np.count_nonzero(weight) / weight.sum()
    return weight


def make_predictions(
    corpus: Corpus,
    stretches: Stretches,
    probability: Floats,
    cluster_of_record: Ints,
    threshold: float,
) -> Predictions:
    """Return the stretches as what a report measures.

    Args:
        corpus: The records.
        stretches: Of those.
        probability: float64 (N,), of each stretch.
        cluster_of_record: int64 (R,), the number of each record's group.
        threshold: A stretch is called viral from this score on.
    """
    return Predictions(
        is_viral=corpus.is_viral[corpus.record_class[stretches.record]],
        score=stretches.score,
        probability=probability,
        is_called=stretches.score >= threshold,
        cluster=cluster_of_record[stretches.record],
        weight=weigh(corpus, stretches),
    )

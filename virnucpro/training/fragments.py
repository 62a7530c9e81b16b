"""Joins held-out chunks into fragments of several lengths, which stand for contigs of a genome.

Training sequences are often whole genomes, but a classifier is used on reads and contigs. The score
of a record is the mean score of its chunks, so any run of neighbouring chunks can be scored without
new embeddings.

Shapes: C chunks, N fragments, R records.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import Float64Array, Int64Array
from virnucpro.errors import count
from virnucpro.reports.metrics import Predictions
from virnucpro.scoring.calibration import Calibration, fit_calibration
from virnucpro.training.corpus import Corpus
from virnucpro.training.splits import HELD_OUT_RUN, balance

SIZES = (1, 2, 4, 8, HELD_OUT_RUN)
"""The maximum number of chunks in a fragment; a fragment has more than half of it."""


def name_size(size: int) -> str:
    """Return the name of a size in reports: `1 chunk`, `2 chunks`, `5-8 chunks`."""
    min_chunks = size // 2 + 1
    if min_chunks < size:
        return f"{min_chunks}-{size} chunks"
    return count(size, "chunk")


class Fragments(NamedTuple):
    """Fragments of all sizes, size after size.

    Attributes:
        size: int64 (N,), one of `SIZES`.
        record: int64 (N,), the record that the fragment is from.
        score: float64 (N,), the mean score of its open chunks.
        num_open_chunks: int64 (N,), at least 1.
    """

    size: Int64Array
    record: Int64Array
    score: Float64Array
    num_open_chunks: Int64Array


def join_chunks(corpus: Corpus, chunks: Int64Array, chunk_score: Float64Array) -> Fragments:
    """Return the fragments that held-out chunks make.

    The fragments of each size cover every record from its first chunk on. The last fragment of a
    record is left out if it has no more than half of the size: a smaller size covers it.

    Args:
        corpus: The records.
        chunks: int64 (C,), usable chunks.
        chunk_score: float64 (C,), their scores.
    """
    record = corpus.chunk_record[chunks]
    parts = []
    for size in SIZES:
        number = corpus.chunk_number[chunks] // size
        is_long = np.minimum(corpus.num_chunks[record] - number * size, size) > size // 2
        # One integer for each fragment: its number follows that of the record.
        keys, fragment = np.unique(record[is_long] << 32 | number[is_long], return_inverse=True)
        num_open_chunks = np.bincount(fragment, minlength=len(keys))
        score = np.bincount(fragment, chunk_score[is_long], len(keys)) / num_open_chunks
        parts.append(Fragments(np.full(len(keys), size), keys >> 32, score, num_open_chunks))
    return Fragments._make(map(np.concatenate, zip(*parts, strict=True)))


def weigh(corpus: Corpus, fragments: Fragments) -> Float64Array:
    """Return float64 (N,): weights that balance all sizes, and the classes within each size.

    A size has the weight 0 if only viral or only other records are long enough for it.
    """
    class_N = corpus.record_class[fragments.record]
    weight = np.zeros(len(class_N))
    for size in SIZES:
        chosen = fragments.size == size
        is_viral = corpus.is_viral[class_N[chosen]]
        if is_viral.any() and not is_viral.all():
            # For each size alone, or the many short fragments would decide everything.
            weight[chosen] = balance(class_N[chosen], corpus.is_viral)
    # So that the mean weight of what counts is 1.
    weight *= np.count_nonzero(weight) / weight.sum()
    return weight


def calibrate_fragments(corpus: Corpus, fragments: Fragments) -> Calibration:
    """Return a calibration that is fitted to fragments of all sizes."""
    weight = weigh(corpus, fragments)
    # Of a size that one kind alone reaches, nothing can be learned.
    used = weight > 0
    is_viral = corpus.is_viral[corpus.record_class[fragments.record]]
    return fit_calibration(
        fragments.score[used], fragments.num_open_chunks[used], is_viral[used], weight[used]
    )


def make_predictions(
    corpus: Corpus,
    fragments: Fragments,
    probability: Float64Array,
    cluster_of_record: Int64Array,
    threshold: float,
) -> Predictions:
    """Return the fragments in the form that a report measures.

    Args:
        corpus: The records.
        fragments: The fragments of these records.
        probability: float64 (N,), the probability that each fragment is viral.
        cluster_of_record: int64 (R,), the number of each record's group.
        threshold: The minimum probability of a fragment that is called viral.
    """
    return Predictions(
        is_viral=corpus.is_viral[corpus.record_class[fragments.record]],
        score=fragments.score,
        probability=probability,
        is_called=probability >= threshold,
        cluster=cluster_of_record[fragments.record],
        weight=weigh(corpus, fragments),
    )

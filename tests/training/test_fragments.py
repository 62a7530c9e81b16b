from __future__ import annotations

import numpy as np
import pytest

from tests.training.test_splits import CLASSES, make_corpus
from virnucpro.training.corpus import Corpus
from virnucpro.training.fragments import join_chunks, make_predictions, name_size, weigh


def test_fragments_are_means_of_neighbours() -> None:
    corpus = make_corpus([1, 1, 1], num_chunks=7)
    usable = np.array([0, 1, 3, 4, 6])  # of the first record; chunks 2 and 5 have no open frame
    score = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    found = join_chunks(corpus, usable, score)
    listed = list(zip(found.size, found.num_open_chunks, np.round(found.score, 6), strict=True))
    assert listed == [
        *((1, 1, value) for value in score),
        # Of two chunks each; the seventh is alone and no fragment of two.
        *((2, 2, 0.2), (2, 1, 0.5), (2, 1, 0.7)),
        *((4, 3, 0.3), (4, 2, 0.8)),
        (8, 5, 0.5),
    ]
    assert [name_size(size) for size in (1, 2, 4, 16)] == [
        *("1 chunk", "2 chunks", "3-4 chunks", "9-16 chunks")
    ]


def test_all_sizes_and_classes_count_alike() -> None:
    corpus = make_corpus([4, 10, 2], num_chunks=8)
    fragments = join_chunks(corpus, np.arange(len(corpus.chunk_record)), np.full(128, 0.5))
    weight = weigh(corpus, fragments)
    assert weight.mean() == pytest.approx(1)
    of_size = [weight[fragments.size == size].sum() for size in (1, 2, 4, 8)]
    np.testing.assert_allclose(of_size, of_size[0])
    sums = np.bincount(corpus.record_class[fragments.record], weight)
    np.testing.assert_allclose(sums / sums.sum(), [0.5, 0.25, 0.25])


def test_a_size_that_one_kind_alone_reaches_does_not_count() -> None:
    corpus = Corpus(
        CLASSES[:2],
        ["long", "short"],
        np.array([0, 1]),
        np.array([0, 0, 0, 0, 1, 1]),
        np.array([0, 1, 2, 3, 0, 1]),
        np.arange(7),
        np.ones(6, np.bool_),
    )
    fragments = join_chunks(corpus, np.arange(6), np.full(6, 0.5))
    weight = weigh(corpus, fragments)
    assert (weight[fragments.size == 4] == 0).all()
    assert (weight[fragments.size <= 2] > 0).all()


def test_a_report_measures_each_fragment_in_the_group_of_its_record() -> None:
    corpus = make_corpus([1, 1, 1], num_chunks=2)
    score = np.array([0.9, 0.4, 0.5, 0.1, 0.2, 0.2])
    fragments = join_chunks(corpus, np.arange(6), score)
    found = make_predictions(corpus, fragments, fragments.score / 2, np.array([5, 6, 6]), 0.25)
    assert found.is_viral.tolist() == [True, True, *[False] * 4, True, False, False]
    assert found.is_called.tolist() == [True, False, True, *[False] * 3, True, False, False]
    assert found.cluster.tolist() == [5, 5, *[6] * 4, 5, 6, 6]
    np.testing.assert_array_equal(found.weight, weigh(corpus, fragments))

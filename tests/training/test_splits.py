from __future__ import annotations

import numpy as np
import pytest

from virnucpro.errors import UsageError
from virnucpro.training.corpus import Corpus, InputClass
from virnucpro.training.splits import (
    SPLITS,
    Labelled,
    balance,
    choose_chunks,
    find_twins,
    split_groups,
)

SHARES = (0.8, 0.1, 0.1)
CLASSES = (InputClass("virus", True), InputClass("bacteria", False), InputClass("fungi", False))


def make_corpus(records_per_class: list[int], num_chunks: int = 4, num_frames: int = 2) -> Corpus:
    """Return records that all have so many chunks, and chunks that all have so many frames."""
    num_records = sum(records_per_class)
    total = num_records * num_chunks
    return Corpus(
        CLASSES,
        [f"r{index}" for index in range(num_records)],
        np.repeat(np.arange(3), records_per_class),
        np.repeat(np.arange(num_records), num_chunks),
        np.tile(np.arange(num_chunks), num_records),
        np.arange(total + 1) * num_frames,
        np.ones(total, np.bool_),
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_shares_are_kept_in_each_class(seed: int) -> None:
    corpus = make_corpus([300, 200, 100])
    groups = [f"species {index // 3}" for index in range(600)]
    split = split_groups(corpus, groups, SHARES, seed)
    assert all(len(set(split[start : start + 3])) == 1 for start in range(0, 600, 3))
    for index in range(3):
        counts = np.bincount(split[corpus.record_class == index], minlength=3)
        np.testing.assert_allclose(counts / counts.sum(), SHARES, atol=0.03)
    again = split_groups(corpus, groups, SHARES, seed)
    np.testing.assert_array_equal(split, again)
    assert (split_groups(corpus, groups, SHARES, seed + 100) != split).any()


def test_a_group_of_several_classes_is_on_one_side() -> None:
    corpus = make_corpus([50, 50, 50])
    # A prophage and its host, say.
    groups = [f"pair {index % 50}" for index in range(150)]
    split = split_groups(corpus, groups, SHARES, 0)
    np.testing.assert_array_equal(split[:50], split[50:100])
    np.testing.assert_array_equal(split[:50], split[100:])


def test_three_groups_are_enough_for_three_splits() -> None:
    split = split_groups(make_corpus([3, 3, 3]), [f"{index}" for index in range(9)], SHARES, 0)
    for first in (0, 3, 6):
        assert sorted(split[first : first + 3]) == [0, 1, 2]


def test_a_giant_group_is_trained_on() -> None:
    corpus = make_corpus([100, 100, 100])
    groups = ["giant" if 100 <= index < 160 else f"{index}" for index in range(300)]
    for seed in range(5):
        split = split_groups(corpus, groups, SHARES, seed)
        assert (split[100:160] == 0).all()
        assert {1, 2} <= set(split[160:200])


def test_other_classes_are_sampled_to_balance() -> None:
    corpus = make_corpus([100, 400, 60], num_chunks=20)
    split = np.arange(560) % 3
    chosen = choose_chunks(corpus, split, seed=0)
    for index, name in enumerate(SPLITS):
        chunks = chosen[name]
        assert (np.diff(chunks) > 0).all()
        assert (split[corpus.chunk_record[chunks]] == index).all()
        viral, bacteria, fungi = (
            corpus.num_frames[chunks[corpus.chunk_class[chunks] == number]].sum()
            for number in range(3)
        )
        assert viral in (33 * 40, 34 * 40)
        assert bacteria == pytest.approx(viral / 2, abs=2 * 16)
        # All there is, or half as much as there is viral.
        assert fungi == pytest.approx(min(20 * 40, viral / 2), abs=2 * 16)
    # What is held out lies in runs, what is trained on all over the place.
    held = chosen["test"][corpus.chunk_class[chosen["test"]] == 1]
    assert (np.diff(held) == 1).mean() > 0.8
    trained = chosen["train"][corpus.chunk_class[chosen["train"]] == 1]
    assert (np.diff(trained) == 1).mean() < 0.5


def test_a_split_without_a_kind_is_refused() -> None:
    corpus = make_corpus([3, 3, 3])
    with pytest.raises(UsageError, match="the test split has no usable chunk of other sequences"):
        choose_chunks(corpus, np.array([0, 1, 2, 0, 1, 1, 0, 1, 1]), seed=0)


def test_equal_sequences_of_both_kinds_or_of_two_splits_are_told() -> None:
    corpus = make_corpus([3, 3, 3])
    split = np.array([0, 1, 2] * 3)
    labelled = Labelled(corpus, [*"abcdefghi"], split, choose_chunks(corpus, split, seed=0))
    first_frame = corpus.chunk_first_frame
    representatives = np.arange(first_frame[-1])
    assert find_twins(labelled, representatives) == []
    chunks = [np.flatnonzero(corpus.chunk_record == record) for record in range(9)]
    num_chunks = len(chunks[0])
    # The first record, which is viral, is the fourth record as well; both are in the split train.
    representatives[first_frame[chunks[3]]] = first_frame[chunks[0]]
    (warning,) = find_twins(labelled, representatives)
    assert warning.startswith(
        f"{num_chunks} of {3 * num_chunks} viral chunks have the DNA of other"
    )
    assert warning.endswith(f"given as viral and as other: {corpus.record_ids[0]}")
    # The fifth record, which is held out, has the same DNA.
    representatives[first_frame[chunks[4]]] = first_frame[chunks[0]]
    both, leak = find_twins(labelled, representatives)
    assert both == warning
    assert leak.startswith(f"{num_chunks} of {6 * num_chunks} held-out chunks have the DNA of")


def test_weights_balance_what_sampling_cannot() -> None:
    class_N = np.repeat([0, 1, 2], [10, 500, 3])
    weight = balance(class_N, np.array([True, False, False]))
    sums = np.bincount(class_N, weight)
    np.testing.assert_allclose(sums, [0.5, 0.25, 0.25])

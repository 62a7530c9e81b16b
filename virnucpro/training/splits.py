"""Who learns, who decides when to stop, who is only looked at in the end; and in what balance.

Shapes: R records, C chunks, G groups, K classes, N chosen chunks or whatever else is weighed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from virnucpro.errors import UsageError
from virnucpro.training.corpus import Corpus, Ints

SPLITS = ("train", "valid", "test")
HELD_OUT_RUN = 16
"""Neighbouring chunks that are held out together, so that they can be joined to longer pieces."""

Floats = npt.NDArray[np.float64]


def split_groups(
    corpus: Corpus, groups: Sequence[str], shares: tuple[float, float, float], seed: int
) -> Ints:
    """Return int64 (R,): the split of each record, an index into `SPLITS`.

    A group is never on two sides. Within each class, groups come in random order to the split that
    is the least full for its share, measured in frames; a class of at least three groups is in all
    splits. A group of several classes counts with the one that it has most frames of.

    Args:
        corpus: The records.
        groups: The group of each record.
        shares: What part of the frames each split is to have.
        seed: Of the order.
    """
    random = np.random.default_rng(seed)
    names, group_R = np.unique(np.array(groups), return_inverse=True)
    size_R = np.bincount(corpus.chunk_record, corpus.num_frames, len(corpus.record_ids))
    size_GK = np.zeros((len(names), len(corpus.classes)))
    np.add.at(size_GK, (group_R, corpus.record_class), size_R)
    split_G = np.zeros(len(names), np.int64)
    for index in range(len(corpus.classes)):
        members = np.flatnonzero((size_GK.argmax(axis=1) == index) & (size_GK.sum(axis=1) > 0))
        order = random.permutation(members)
        split_G[order] = _fill(size_GK[order].sum(axis=1), shares)
    return split_G[group_R]


def _fill(sizes: Floats, shares: tuple[float, float, float]) -> Ints:
    """Return the split of each of some groups of the given sizes."""
    filled = np.zeros(len(SPLITS))
    splits = np.zeros(len(sizes), np.int64)
    for index, size in enumerate(sizes.tolist()):
        splits[index] = ((filled + size) / shares).argmin()
        filled[splits[index]] += size
    for held_out in (1, 2):
        rest = np.flatnonzero(splits == 0)
        if len(sizes) >= len(SPLITS) and filled[held_out] == 0 and len(rest) > 1:
            smallest = rest[sizes[rest].argmin()]
            splits[smallest] = held_out
    return splits


def choose_chunks(corpus: Corpus, split_of_record: Ints, seed: int) -> dict[str, Ints]:
    """Return for each split the chunks to embed, ascending.

    All viral chunks are taken, and of each other class, at random, as many frames as make the
    others together as many as the viral ones, or all it has. Training takes single chunks; what is
    held out comes in runs of neighbours.

    Args:
        corpus: The records.
        split_of_record: int64 (R,), from `split_groups`.
        seed: Of the choice.

    Raises:
        UsageError: A split has no viral frames, or no others.
    """
    random = np.random.default_rng(seed)
    split_C = split_of_record[corpus.chunk_record]
    chosen = {}
    for index, name in enumerate(SPLITS):
        run_length = 1 if name == "train" else HELD_OUT_RUN
        candidates = np.flatnonzero(corpus.is_usable & (split_C == index))
        viral = corpus.is_viral[corpus.chunk_class[candidates]]
        _check_both(name, viral)
        wanted = corpus.num_frames[candidates[viral]].sum() / (~corpus.is_viral).sum()
        parts = [candidates[viral]]
        for class_index in np.flatnonzero(~corpus.is_viral):
            mine = candidates[corpus.chunk_class[candidates] == class_index]
            parts.append(_take_runs(corpus, mine, run_length, wanted, random))
        chosen[name] = np.sort(np.concatenate(parts))
    return chosen


def _check_both(name: str, viral: npt.NDArray[np.bool_]) -> None:
    missing = "viral" if not viral.any() else "other" if viral.all() else None
    if missing is not None:
        raise UsageError(
            f"the {name} split has no open frame of {missing} sequences; wanted records of at "
            "least three groups of each kind, or other shares (--valid-share, --test-share)"
        )


def _take_runs(
    corpus: Corpus, chunks: Ints, run_length: int, num_frames: float, random: np.random.Generator
) -> Ints:
    """Return those of `chunks` that lie in random runs, until these have enough frames."""
    keys = corpus.chunk_record[chunks] << 32 | corpus.chunk_number[chunks] // run_length
    runs, run_of_chunk = np.unique(keys, return_inverse=True)
    size = np.bincount(run_of_chunk, corpus.num_frames[chunks], len(runs))
    order = random.permutation(len(runs))
    before = np.cumsum(size[order]) - size[order]
    is_taken = np.zeros(len(runs), np.bool_)
    is_taken[order[before < num_frames]] = True
    return chunks[is_taken[run_of_chunk]]


def balance(class_N: Ints, is_viral: npt.NDArray[np.bool_]) -> Floats:
    """Return float64 (N,): weights under which viral ones are one half and other classes alike.

    Args:
        class_N: int64 (N,), the class of each; both kinds must occur.
        is_viral: bool (K,), which classes are viral.
    """
    count_K = np.bincount(class_N, minlength=len(is_viral))
    num_viral = count_K[is_viral].sum()
    num_other_classes = np.count_nonzero(count_K[~is_viral])
    other_K = 0.5 / (num_other_classes * np.maximum(count_K, 1))
    return np.where(is_viral[class_N], 0.5 / num_viral, other_K[class_N])

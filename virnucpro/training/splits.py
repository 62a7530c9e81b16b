"""Splits records into train, validation and test sets, and balances classes.

Shapes: R records, C chunks, G groups, K classes, N things that are weighted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array
from virnucpro.errors import UsageError, count_who, name_few
from virnucpro.training.corpus import Corpus

SPLITS = ("train", "valid", "test")
HELD_OUT_RUN = 16
"""Neighbouring chunks that are held out together, so that they can be joined to fragments."""


class Labelled(NamedTuple):
    """Labelled records, split by their groups, and the chunks that were chosen of each split.

    Attributes:
        corpus: The records.
        groups: The group of each record.
        split_of_record: int64 (R,), an index into `SPLITS`.
        chunks: The chunks of each split, by its name.
    """

    corpus: Corpus
    groups: Sequence[str]
    split_of_record: Int64Array
    chunks: Mapping[str, Int64Array]


def split_groups(
    corpus: Corpus, groups: Sequence[str], shares: tuple[float, float, float], seed: int
) -> Int64Array:
    """Return int64 (R,): the split of each record, an index into `SPLITS`.

    All records of a group are in the same split. The groups of each class, in random order, go to
    the split that is the least full for its share, measured in frames. A class of at least three
    groups is in all splits. A group of several classes belongs to the class of most of its frames.

    Args:
        corpus: The records.
        groups: The group of each record.
        shares: The share of the frames that each split gets.
        seed: The seed of the order.
    """
    random = np.random.default_rng(seed)
    names, group_R = np.unique(np.array(groups), return_inverse=True)
    # In frames, because records differ in length and frames are what is learned from.
    size_R = np.bincount(corpus.chunk_record, corpus.num_frames, len(corpus.record_ids))
    size_GK = np.zeros((len(names), len(corpus.classes)))
    np.add.at(size_GK, (group_R, corpus.record_class), size_R)
    # By groups and not by records: relatives of a training record would make the test too easy.
    split_G = np.zeros(len(names), np.int64)
    for index in range(len(corpus.classes)):
        members = np.flatnonzero((size_GK.argmax(axis=1) == index) & (size_GK.sum(axis=1) > 0))
        # A class at a time, so that each class is in every split.
        order = random.permutation(members)
        split_G[order] = _fill(size_GK[order].sum(axis=1), shares)
    return split_G[group_R]


def _fill(sizes: Float64Array, shares: tuple[float, float, float]) -> Int64Array:
    """Return the splits of groups with these sizes."""
    filled = np.zeros(len(SPLITS))
    splits = np.zeros(len(sizes), np.int64)
    for index, size in enumerate(sizes.tolist()):
        splits[index] = ((filled + size) / shares).argmin()
        filled[splits[index]] += size
    # A large group can leave a split empty; it then gets the smallest group.
    for held_out in (1, 2):
        rest = np.flatnonzero(splits == 0)
        if len(sizes) >= len(SPLITS) and filled[held_out] == 0 and len(rest) > 1:
            smallest = rest[sizes[rest].argmin()]
            splits[smallest] = held_out
    return splits


def choose_chunks(corpus: Corpus, split_of_record: Int64Array, seed: int) -> dict[str, Int64Array]:
    """Return the chunks to embed in each split, in ascending order.

    All viral chunks are taken. Every other class gives random chunks with an equal number of
    frames, so that all others together have as many frames as the viral ones. A class with fewer
    frames gives all. The training split takes single chunks, the others runs of neighbours.

    Args:
        corpus: The records.
        split_of_record: int64 (R,), from `split_groups`.
        seed: The seed of the choice.

    Raises:
        UsageError: A split has no viral frames, or no others.
    """
    # Every process of a launch draws the same chunks, and so does a resumed run.
    random = np.random.default_rng(seed)
    split_C = split_of_record[corpus.chunk_record]
    chosen = {}
    for index, name in enumerate(SPLITS):
        # Fragments are made of neighbours, and only held-out records are measured in fragments.
        run_length = 1 if name == "train" else HELD_OUT_RUN
        candidates = np.flatnonzero(corpus.is_usable & (split_C == index))
        viral = corpus.is_viral[corpus.chunk_class[candidates]]
        if viral.all() or not viral.any():
            missing = "viral" if not viral.any() else "other"
            raise UsageError(
                f"the {name} split has no usable chunk of {missing} sequences. Each input is a "
                "class, and a class is in all splits if it has at least three groups (--groups; "
                "else each record is a group). Put sequences of one kind into one file, add "
                "groups, or choose other shares (--valid-share, --test-share)"
            )
        wanted = corpus.num_frames[candidates[viral]].sum() / (~corpus.is_viral).sum()
        parts = [candidates[viral]]
        for class_index in np.flatnonzero(~corpus.is_viral):
            mine = candidates[corpus.chunk_class[candidates] == class_index]
            parts.append(_take_runs(corpus, mine, run_length, wanted, random))
        chosen[name] = np.sort(np.concatenate(parts))
    return chosen


def find_twins(labelled: Labelled, representatives: Int64Array) -> list[str]:
    """Return warnings of chunks with the same DNA that are of both kinds, or in several splits.

    Args:
        labelled: The records and their splits.
        representatives: int64 (F,), the first frame with the DNA of each frame.
    """
    corpus = labelled.corpus
    chunks = np.flatnonzero(corpus.is_usable)
    record = corpus.chunk_record[chunks]
    # The DNA of its first frame stands for a chunk.
    dna = representatives[corpus.chunk_first_frame[chunks]]
    is_viral = corpus.is_viral[corpus.chunk_class[chunks]]
    is_held_out = labelled.split_of_record[record] > 0
    warnings = []
    in_both = is_viral & np.isin(dna, dna[~is_viral])
    if in_both.any():
        who = count_who(int(in_both.sum()), "viral chunk", "have", of=int(is_viral.sum()))
        names = name_few([corpus.record_ids[index] for index in np.unique(record[in_both])])
        warnings.append(
            f"{who} the DNA of other sequences, too, and nothing can be learned from such chunks; "
            f"look whether these records were given as viral and as other: {names}"
        )
    in_train = is_held_out & np.isin(dna, dna[~is_held_out])
    if in_train.any():
        who = count_who(int(in_train.sum()), "held-out chunk", "have", of=int(is_held_out.sum()))
        warnings.append(
            f"{who} the DNA of chunks in the split train, so the report is too good; give related "
            "records the same group (--groups)"
        )
    return warnings


def _take_runs(
    corpus: Corpus,
    chunks: Int64Array,
    run_length: int,
    num_frames: float,
    random: np.random.Generator,
) -> Int64Array:
    """Return the part of `chunks` that lies in random runs with about `num_frames` frames."""
    # One integer for each run of a record: its number follows that of the record.
    keys = corpus.chunk_record[chunks] << 32 | corpus.chunk_number[chunks] // run_length
    runs, run_of_chunk = np.unique(keys, return_inverse=True)
    size = np.bincount(run_of_chunk, corpus.num_frames[chunks], len(runs))
    order = random.permutation(len(runs))
    before = np.cumsum(size[order]) - size[order]
    is_taken = np.zeros(len(runs), np.bool_)
    # A run counts if it begins before the wanted number is reached.
    is_taken[order[before < num_frames]] = True
    return chunks[is_taken[run_of_chunk]]


def balance(class_N: Int64Array, is_viral: BoolArray) -> Float64Array:
    """Return float64 (N,): weights of one half for the viral part, and equal for other classes.

    Args:
        class_N: int64 (N,), the class of each thing; both kinds must occur.
        is_viral: bool (K,), whether each class is viral.
    """
    count_K = np.bincount(class_N, minlength=len(is_viral))
    num_viral = count_K[is_viral].sum()
    # A class that does not occur must not get a share.
    num_other_classes = np.count_nonzero(count_K[~is_viral])
    other_K = 0.5 / (num_other_classes * np.maximum(count_K, 1))
    return np.where(is_viral[class_N], 0.5 / num_viral, other_K[class_N])

"""Labelled records, their chunks and their frames, from which a classifier is trained.

Shapes: R records, C chunks, F frames, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray, Int64Array, number_spans, split_rows
from virnucpro.config import input_stem
from virnucpro.errors import InputError, brief, count
from virnucpro.reports.tables import read_table
from virnucpro.sequences.frame_store import FrameStore

_BASES = frozenset("ACGT")


class InputClass(NamedTuple):
    """A class of records: an input file, or a directory of the original's features."""

    name: str
    is_viral: bool


@dataclass(frozen=True)
class Corpus:
    """Labelled records in the order of the input.

    Attributes:
        classes: The K classes.
        record_ids: The R ids.
        record_class: int64 (R,), an index into `classes`.
        chunk_record: int64 (C,), the record of each chunk.
        chunk_number: int64 (C,), its position among the chunks of the record, from 0.
        chunk_first_frame: int64 (C + 1,); chunk c has the frames from entry c to entry c + 1.
        is_usable: bool (C,), whether the chunk has frames and no ambiguous base.
    """

    classes: tuple[InputClass, ...]
    record_ids: Sequence[str]
    record_class: Int64Array
    chunk_record: Int64Array
    chunk_number: Int64Array
    chunk_first_frame: Int64Array
    is_usable: BoolArray

    @cached_property
    def is_viral(self) -> BoolArray:
        """Bool (K,): whether each class is viral."""
        return np.array([one.is_viral for one in self.classes])

    @cached_property
    def chunk_class(self) -> Int64Array:
        """int64 (C,): the class of each chunk."""
        return self.record_class[self.chunk_record]

    @cached_property
    def num_frames(self) -> Int64Array:
        """int64 (C,): the number of frames of each chunk; 0 if the chunk is not usable."""
        return np.where(self.is_usable, np.diff(self.chunk_first_frame), 0)

    @cached_property
    def num_chunks(self) -> Int64Array:
        """int64 (R,): the chunks of each record up to its last known one."""
        # The original's features leave out chunks, so the last number tells how many there were.
        found = np.zeros(len(self.record_ids), np.int64)
        np.maximum.at(found, self.chunk_record, self.chunk_number + 1)
        return found

    def rows(self, chunks: Int64Array) -> Int64Array:
        """Return int64 (F,): the rows of the frames of `chunks`, in this order."""
        return number_spans(self.chunk_first_frame[chunks], self.num_frames[chunks])


def name_classes(viral: Sequence[str], other: Sequence[str]) -> tuple[InputClass, ...]:
    """Return a class for each file, named after the file, or by its path if names are equal."""
    paths = [*viral, *other]
    stems = [input_stem(path) for path in paths]
    return tuple(
        InputClass(stem if stems.count(stem) == 1 else path, index < len(viral))
        for index, (path, stem) in enumerate(zip(paths, stems, strict=True))
    )


def make_corpus(store: FrameStore, classes: tuple[InputClass, ...]) -> Corpus:
    """Return the records of a frame store, whose inputs are the classes.

    A chunk with an ambiguous base is not usable, as in the original's training: nobody knows which
    base it stands for, and its codon has no translation.
    """
    num_chunks = np.diff(store.record_first_chunk)
    chunk_record = np.repeat(np.arange(store.num_records), num_chunks)
    is_usable = np.diff(store.chunk_first_frame) > 0
    # The sequences of all chunks may not fit the memory, so they are read in blocks.
    for block in split_rows(0, store.num_chunks):
        sequences = store.chunk_sequences(block.start, block.stop)
        is_usable[block] &= [_BASES.issuperset(sequence) for sequence in sequences]
    return Corpus(
        classes,
        store.record_ids(0, store.num_records),
        np.repeat(np.arange(len(classes)), [file["num_records"] for file in store.inputs]),
        chunk_record,
        np.arange(store.num_chunks) - store.record_first_chunk[chunk_record],
        np.asarray(store.chunk_first_frame),
        is_usable,
    )


def read_groups(path: Path, record_ids: Sequence[str]) -> list[str]:
    """Return the group of each record; a record that is not in the table is its own group.

    Args:
        path: A table with the columns `id` and `group`.
        record_ids: The R ids.

    Raises:
        InputError: The table cannot be read, contradicts itself, or names none of the records.
    """
    groups: dict[str, str] = {}
    for number, line in read_table(path, ("id", "group")):
        if groups.setdefault(line["id"], line["group"]) != line["group"]:
            raise InputError(
                f"{path}, line {number}: {brief(line['id'])} was in another group before"
            )
    if groups.keys().isdisjoint(record_ids):
        raise InputError(
            f"{path}: none of its {count(len(groups), 'id')} is among the "
            f"{count(len(record_ids), 'record')}; wanted the first words of the sequences' headers"
        )
    # The word before the id keeps a record out of a group of the same name.
    return [groups.get(name, f"record {name}") for name in record_ids]


def describe_classes(
    corpus: Corpus, splits: Mapping[str, Int64Array], groups: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what the report says about each class, and about its chosen chunks in each split.

    Records without a usable frame are counted apart, because no classifier can call them.
    """
    has_frames = np.zeros(len(corpus.record_ids), np.bool_)
    has_frames[corpus.chunk_record[corpus.is_usable]] = True
    group_array = np.array(groups, dtype=object)
    described = []
    for index, one in enumerate(corpus.classes):
        is_member = corpus.record_class == index
        document = {
            "class": one.name,
            "is_viral": one.is_viral,
            "num_records": int(is_member.sum()),
            "num_records_without_frames": int((is_member & ~has_frames).sum()),
        }
        for name, chunks in splits.items():
            mine = chunks[corpus.chunk_class[chunks] == index]
            records = np.unique(corpus.chunk_record[mine])
            document[name] = {
                "num_groups": len(set(group_array[records].tolist())),
                "num_records": len(records),
                "num_chunks": len(mine),
                "num_frames": int(corpus.num_frames[mine].sum()),
            }
        described.append(document)
    return described

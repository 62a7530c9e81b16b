"""Reading pairs of reads: two mates that were sequenced from the ends of one fragment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from virnucpro.errors import InputError, brief
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.records import Record

_REMEDY = (
    "give both files the same reads in the same order, or one file with the two mates of each pair "
    "one after the other"
)


def read_pairs(readers: Sequence[RecordReader]) -> Iterator[Record]:
    """Yield the mates of read pairs, a first mate and its second mate in turn.

    Args:
        readers: Of the files of first and second mates in turn, or of one file with both.

    Raises:
        InputError: A file cannot be read, a mate is missing, or two mates have different ids.
    """
    iterators = [iter(reader) for reader in readers]
    if len(iterators) == 1:
        # The same iterator twice: taking from both in turn gives the mates of one file in turn.
        iterators *= 2
        readers = [*readers, *readers]
    for place in range(0, len(iterators), 2):
        names = " and ".join(dict.fromkeys(reader.path for reader in readers[place : place + 2]))
        # The longest, so that a mate without a partner is found and not dropped in silence.
        pairs = itertools.zip_longest(*iterators[place : place + 2])
        for number, (first, second) in enumerate(pairs, 1):
            if first is None or second is None:
                alone = first or second
                raise InputError(
                    f"{names}: pair {number}, {brief(alone.id)}, lacks a mate; {_REMEDY}"
                )
            # Files that are sorted differently would give pairs of strangers, each with one call.
            if not _are_mates(first.id, second.id):
                wanted = (
                    "the mate /1 comes first; change the order of the files, or of the reads"
                    if _are_mates(second.id, first.id)
                    else f"the ids of two mates may differ only in /1 and /2 at the end; {_REMEDY}"
                )
                raise InputError(
                    f"{names}: pair {number} has the ids {brief(first.id)} and {brief(second.id)}; "
                    f"{wanted}"
                )
            yield first
            yield second


def _are_mates(first: str, second: str) -> bool:
    """Compare two ids; `x/1` and `x/2` belong together, as `x.1` and `x.2` do."""
    return first == second or (first[:-1] == second[:-1] and first[-1:] + second[-1:] == "12")

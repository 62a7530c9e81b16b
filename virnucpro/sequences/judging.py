"""The letters of DNA and of proteins, and telling one from the other by the first records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from virnucpro.backend.interface import ALL_LETTERS
from virnucpro.errors import InputError, brief
from virnucpro.sequences.records import Record

if TYPE_CHECKING:
    from virnucpro.backend.interface import Alphabet

# RNA is read as DNA.
_LETTERS = {"dna": f"{ALL_LETTERS['dna']}U", "protein": ALL_LETTERS["protein"]}
VALID_BYTES = {
    name: (letters + letters.lower()).encode("ascii") for name, letters in _LETTERS.items()
}
"""The letters that a file of each alphabet may have."""

PLAIN_BYTES = {"dna": b"ACGTNacgtn", "protein": b"ACDEFGHIKLMNPQRSTVWXY"}
"""Records of these letters alone, which nearly all are, need no second look."""

_LETTERS_TO_JUDGE_BY = 10_000
_MIN_LETTERS_TO_JUDGE_BY = 20
# Proteins have A, C, G and T for 22 % of their residues, and silk for 80 %.
_MAX_BASES_IN_PROTEINS = 0.95
_MIN_BASES_IN_DNA = 0.5
_ONLY_IN_PROTEINS = frozenset("EFIJLOPQZ*efijlopqz")


def judge_alphabet(
    blocks: Iterator[list[Record]], alphabet: Alphabet, name: str
) -> Iterator[list[Record]]:
    """Pass on the records of a file, and refuse DNA where proteins are wanted, or the reverse.

    Args:
        blocks: The records, in lists.
        alphabet: What is wanted.
        name: What the file is called.

    Raises:
        InputError: The first records look like the other alphabet.
    """
    num_letters = num_bases = 0
    is_judged = False
    # The empty list marks the end: a short file is judged there by all that it has.
    for records in itertools.chain(blocks, [[]]):
        if not is_judged:
            text = "".join(record.sequence for record in records).upper()
            # N and X stand for anything, and gaps and stops for nothing.
            num_letters += len(text) - sum(text.count(letter) for letter in "NX-.*")
            # U counts, because RNA is read as DNA.
            num_bases += sum(text.count(base) for base in "ACGTU")
            if num_letters >= _LETTERS_TO_JUDGE_BY or not records:
                _judge(num_bases, num_letters, alphabet, name)
                is_judged = True
        yield records


def _judge(num_bases: int, num_letters: int, alphabet: Alphabet, name: str) -> None:
    # A few letters say nothing: ACGT is also a peptide.
    if num_letters < _MIN_LETTERS_TO_JUDGE_BY:
        return
    share = num_bases / num_letters
    if alphabet == "protein" and share > _MAX_BASES_IN_PROTEINS:
        found, wanted = "DNA", "proteins"
    elif alphabet == "dna" and share < _MIN_BASES_IN_DNA:
        found, wanted = "proteins", "DNA"
    else:
        return
    raise InputError(
        f"{name}: looks like {found}, and the backend reads {wanted}: {100 * share:.0f} % of the "
        f"letters in its first records are A, C, G, T or U; choose a backend for {found}, or "
        "another file. `virnucpro embed --force-alphabet` embeds such a file"
    )


def describe_letter(record: Record, position: int, alphabet: Alphabet) -> str:
    """Return where a record has a letter that is not in the alphabet, and what to do about it."""
    letter = record.sequence[position]
    wanted, unknown = ("a nucleotide", "N") if alphabet == "dna" else ("an amino acid", "X")
    text = (
        f"record {brief(record.id)} has {letter!r} at position {position + 1}, which is not "
        f"{wanted} letter"
    )
    if alphabet == "dna" and letter in _ONLY_IN_PROTEINS:
        return f"{text}; it looks like a protein: `virnucpro embed --backend esm2` reads those"
    return f"{text}; remove it, or write {unknown} in its place"

"""Stretches: compared with a plain implementation on Biopython."""

import itertools
import random

import numpy as np
import pytest
from Bio.Data import CodonTable
from Bio.Seq import Seq

from virnucpro.config.frame_rule import FrameRule
from virnucpro.sequences import frames

CODES = [1, 4, 11, 25, 27]
LETTERS = "ACGTacgtNnUuRYSWKMBDHVXrywk-."


def split_plainly(strand: str, code: int) -> list[tuple[int, str]]:
    """Return the first codon and the protein of each run of codons that have an amino acid."""
    table = CodonTable.unambiguous_dna_by_id[code].forward_table
    codons = [strand[start : start + 3] for start in range(0, len(strand) - 2, 3)]
    found, first = [], 0
    for is_sense, run in itertools.groupby(codons, table.__contains__):
        members = list(run)
        if is_sense:
            found.append((first, "".join([table[codon] for codon in members])))
        first += len(members)
    return found


def find_plainly(chunk: str, rule: FrameRule) -> list[tuple[int, int, str]]:
    """Return frame code, first codon and protein of a chunk's stretches, the longest first."""
    chunk = chunk.upper()
    # Biopython complements U and the ambiguous letters as well, and no codon with them counts.
    strands = chunk, str(Seq(chunk.replace("U", "N")).reverse_complement())
    found = [
        (3 * index + offset, first, protein)
        for index, strand in enumerate(strands)
        for offset in range(3)
        for first, protein in split_plainly(strand[offset:], rule.genetic_code)
        if len(protein) >= rule.min_codons
    ]
    return sorted(found, key=lambda one: (-len(one[2]), one[:2]))[: rule.max_stretches]


def find(chunks: list[str], rule: FrameRule) -> list[list[tuple[int, int, str]]]:
    """Return the same for chunks that lie end to end."""
    length = np.array([len(chunk) for chunk in chunks], np.int64)
    letters = "".join(chunks).encode("ascii")
    found = frames.find_stretches(letters, np.cumsum(length) - length, length, rule)
    of_chunk: list[list[tuple[int, int, str]]] = [[] for _ in chunks]
    end = np.cumsum(found.protein_length).tolist()
    spans = zip([0, *end], end, strict=False)
    for index, (start, stop) in enumerate(spans):
        protein = found.proteins[start:stop].decode("ascii")
        row = (int(found.code[index]), int(found.first_codon[index]), protein)
        of_chunk[found.chunk[index]].append(row)
    assert len(found.proteins) == found.protein_length.sum()
    assert (np.diff(found.chunk) >= 0).all()
    return of_chunk


def make_chunks(seed: int, num: int, max_length: int) -> list[str]:
    rng = random.Random(seed)
    alphabets = ["ACGT", "ACGT", "acgtACGT", LETTERS, "ACGT" * 30 + "N", "ACG", "GCA", "N", "TAG"]
    return [
        "".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, max_length)))
        for _ in range(num)
    ]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("max_stretches", "min_codons"), [(2, 20), (1, 1), (6, 15), (300, 2)])
def test_stretches_are_those_of_the_plain_rule(
    code: int, max_stretches: int, min_codons: int
) -> None:
    rule = FrameRule("stretches", max_stretches, min_codons, code)
    chunks = make_chunks(code, 200, 600) + make_chunks(100 + code, 200, 12)
    assert find(chunks, rule) == [find_plainly(chunk, rule) for chunk in chunks]


def test_overlapping_chunks_are_read_each_on_its_own() -> None:
    rule = FrameRule("stretches", 4, 10)
    sequences = [chunk for chunk in make_chunks(3, 60, 3000) if len(chunk) > 500]
    length = np.array([len(sequence) for sequence in sequences])
    chunks = frames.cut_records(length, 500)
    letters = "".join(sequences)
    cut = [letters[s : s + n] for s, n in zip(chunks.start, chunks.length, strict=True)]
    found = frames.find_stretches(letters.encode(), chunks.start, chunks.length, rule)
    wanted = [(n, *one) for n, chunk in enumerate(cut) for one in find_plainly(chunk, rule)]
    assert found.chunk.tolist() == [one[0] for one in wanted]
    assert found.code.tolist() == [one[1] for one in wanted]
    assert found.first_codon.tolist() == [one[2] for one in wanted]
    assert found.proteins.decode() == "".join(one[3] for one in wanted)


def test_no_chunks_have_no_stretches() -> None:
    assert find([], FrameRule("stretches")) == []
    assert find(["N" * 500, "A", "AC"], FrameRule("stretches", 2, 1)) == [[], [], []]


@pytest.mark.parametrize("code", CODES)
def test_open_frames_are_those_of_the_code(code: int) -> None:
    table = CodonTable.unambiguous_dna_by_id[code].forward_table
    stops = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT" if a + b + c not in table]
    for codon in stops:
        chunk = "GCA" * 10 + codon + "GCA" * 10
        found = frames.find_open_frames(chunk.encode(), np.array([0]), np.array([63]), code)
        assert 0 not in found.code
    for codon, letter in table.items():
        chunk = "GCA" * 10 + codon + "GCA" * 10
        found = frames.find_open_frames(chunk.encode(), np.array([0]), np.array([63]), code)
        assert found.code[0] == 0
        assert found.proteins[:21].decode() == "A" * 10 + letter + "A" * 10


def test_a_codon_that_is_stop_and_sense_is_sense() -> None:
    table = CodonTable.unambiguous_dna_by_id[27]
    assert "TGA" in table.stop_codons
    assert find(["TGA" * 5], FrameRule("stretches", 1, 5, 27)) == [[(0, 0, "WWWWW")]]


# Repetitive chunks


def is_repetitive_plainly(chunk: str) -> bool:
    bases = ["ACGT".find(letter) for letter in chunk.upper()]
    shares = (
        [a == b != -1 for a, b in zip(bases, bases[period:], strict=False)]
        for period in range(7, 13)
    )
    return len(chunk) >= 48 and any(sum(equal) > 0.75 * len(equal) for equal in shares)


def test_repetitive_chunks_are_found_as_plainly_as_one_can() -> None:
    rng = random.Random(4)
    chunks = ["", "A", "N" * 90, "GGG", "GGGGGG", "acgtacgtacgtNNN"]
    # From pure repeats to none of them.
    for size in [3, 47, 48, 99, 150, 300] * 3:
        for share in [0, 40, 60, 70, 80, 90, 100]:
            repeat = "".join(rng.choices("ACGTacgtN", k=rng.randint(1, 14)))
            num = size * share // 100
            random_part = "".join(rng.choices("ACGTacgtN", k=size - num))
            chunks.append((repeat * size)[:num] + random_part)
    length = np.array([len(chunk) for chunk in chunks], np.int64)
    start = np.cumsum(length) - length
    found = frames.find_repetitive("".join(chunks).encode("ascii"), start, length)
    assert found.tolist() == [is_repetitive_plainly(chunk) for chunk in chunks]
    assert 10 < found.sum() < len(found) - 10


@pytest.mark.parametrize("length", [75, 150, 300, 1000])
@pytest.mark.parametrize(
    "repeat", ["G", "a", "GC", "CA", "CAG", "TATC", "AATGG", "TTAGGG", "GATTACA", "ATGGCGTTACGT"]
)
def test_short_repeats_hold_no_stretch(repeat: str, length: int) -> None:
    rule = FrameRule("stretches")
    rng = random.Random(length)
    gene = "".join(rng.choices("ACGT", k=length))
    letters = (gene + (repeat * length)[:length] + gene).encode("ascii")
    start, lengths = np.arange(3) * length, np.full(3, length)
    found = frames.find_rows(letters, start, lengths, rule)
    # Its neighbours are read as before.
    alone = frames.find_stretches(gene.encode("ascii"), start[:1], lengths[:1], rule)
    assert found.chunk.tolist() == [0] * len(alone.code) + [2] * len(alone.code)
    assert found.proteins == 2 * alone.proteins
    assert found.first_codon.tolist() == 2 * alone.first_codon.tolist()
    # The original's rule reads everything.
    assert 1 in frames.find_rows(letters, start, lengths, FrameRule("open")).chunk


def test_genes_are_not_repetitive() -> None:
    """A gene of the most uneven genomes: nine of ten bases are A or T."""
    rng = random.Random(1)
    for weights in ([1, 1, 1, 1], [45, 5, 5, 45], [10, 40, 40, 10]):
        letters = "".join(rng.choices("ACGT", weights, k=75_000)).encode("ascii")
        for size in (75, 300, 1000):
            start = np.arange(0, 75_000 - size, size)
            found = frames.find_repetitive(letters, start, np.full(len(start), size))
            assert found.mean() < (0.01 if size == 75 else 0.001)

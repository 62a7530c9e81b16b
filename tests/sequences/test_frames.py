"""Chunks and frames against a plain implementation of the original's rules, and its own files."""

from __future__ import annotations

import math
import random
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from Bio.Data.CodonTable import standard_dna_table
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.sequences import frames
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store
from virnucpro.sequences.records import FRAME_NAMES

COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}
LETTERS = "ACGTacgtNnUuRYSWKMBDHVXrywk-."


class Frame(NamedTuple):
    """An open frame of the plain implementation."""

    record: int
    chunk: int
    name: str
    dna: str
    protein: str


def cut_plainly(sequence: str, chunk_length: int) -> list[str]:
    num_chunks = math.ceil(len(sequence) / chunk_length)
    if num_chunks == 0:
        return []
    overlap = num_chunks * chunk_length - len(sequence)
    shift = overlap // num_chunks
    num_longer = overlap - shift * (num_chunks - 1)
    shifts = [shift + 1] * num_longer + [shift] * num_chunks
    chunks = []
    for number in range(num_chunks):
        start = number * chunk_length - sum(shifts[:number])
        chunks.append(sequence[start : start + chunk_length])
    return chunks


def translate_plainly(dna: str) -> str:
    protein = ""
    for start in range(0, len(dna) - 2, 3):
        codon = dna[start : start + 3]
        if codon in standard_dna_table.stop_codons:
            protein += "*"
        else:
            protein += standard_dna_table.forward_table.get(codon, "")
    return protein


def find_frames_plainly(sequences: list[str], chunk_length: int) -> list[Frame]:
    found = []
    for record, sequence in enumerate(sequences):
        for number, chunk in enumerate(cut_plainly(sequence.upper(), chunk_length), 1):
            other = "".join(COMPLEMENT.get(letter, letter) for letter in reversed(chunk))
            for name in FRAME_NAMES:
                strand = (chunk if name[0] == "F" else other)[int(name[1]) - 1 :]
                protein = translate_plainly(strand)
                if protein and "*" not in protein:
                    dna = strand[: 3 * len(protein) + 1]
                    found.append(Frame(record, number, name, dna, protein))
    return found


def find_frames(sequences: list[str], chunk_length: int) -> list[Frame]:
    letters = "".join(sequences).encode("ascii")
    chunks = frames.cut_records(np.array([len(s) for s in sequences], np.int64), chunk_length)
    record = np.repeat(np.arange(len(sequences)), chunks.num_chunks)
    first_chunk = np.cumsum(chunks.num_chunks) - chunks.num_chunks
    opened = frames.find_open_frames(letters, chunks.start, chunks.length)
    start, length = frames.locate_frame_dna(
        chunks.length[opened.chunk], opened.code, opened.protein_length
    )
    start += chunks.start[opened.chunk]
    found, position = [], 0
    for row, (chunk, code) in enumerate(zip(opened.chunk, opened.code, strict=True)):
        dna = letters[start[row] : start[row] + length[row]].upper()
        if frames.is_reverse(code):
            dna = frames.reverse_complement(dna)
        end = position + opened.protein_length[row]
        number = chunk - first_chunk[record[chunk]] + 1
        protein = opened.proteins[position:end].decode("ascii")
        found.append(Frame(record[chunk], number, FRAME_NAMES[code], dna.decode("ascii"), protein))
        position = end
    assert position == len(opened.proteins)
    return found


# Stop codons close nearly every frame of uniform bases; without T or A many stay open.
ALPHABETS = [LETTERS, "ACGT", "ACGTN", "CGAcga", "GCTN-", "GCAU.", "U", "N"]


def make_sequence(alphabet: str, length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


sequences = st.builds(
    make_sequence, st.sampled_from(ALPHABETS), st.integers(0, 1600), st.integers(0, 2**32)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(sequences, max_size=4), st.sampled_from([300, 500]))
def test_any_records_give_the_frames_of_the_plain_rules(
    sequences: list[str], chunk_length: int
) -> None:
    assert find_frames(sequences, chunk_length) == find_frames_plainly(sequences, chunk_length)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ACGTN", max_size=40), max_size=8), st.integers(3, 30))
def test_short_chunks_give_the_frames_of_the_plain_rules(
    sequences: list[str], chunk_length: int
) -> None:
    assert find_frames(sequences, chunk_length) == find_frames_plainly(sequences, chunk_length)


@pytest.mark.parametrize("chunk_length", [300, 500])
def test_every_length_is_cut_by_the_plain_rules(chunk_length: int) -> None:
    # Every position has a letter of its own, so that a chunk shows where it was cut.
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 1600)))
    sequences = [alphabet[:length] for length in range(1601)]
    plain = [cut_plainly(sequence, chunk_length) for sequence in sequences]
    chunks = frames.cut_records(np.arange(1601), chunk_length)
    letters = "".join(sequences)
    spans = zip(chunks.start.tolist(), chunks.length.tolist(), strict=True)
    assert chunks.num_chunks.tolist() == [len(of_record) for of_record in plain]
    assert [letters[start : start + length] for start, length in spans] == list(chain(*plain))


@pytest.mark.slow
@pytest.mark.parametrize("chunk_length", [300, 500])
def test_every_length_gives_the_frames_of_the_plain_rules(chunk_length: int) -> None:
    sequences = [make_sequence(ALPHABETS[n % 7], n, seed=n) for n in range(1601)]
    assert find_frames(sequences, chunk_length) == find_frames_plainly(sequences, chunk_length)


def test_too_short_records_are_not_cut() -> None:
    chunks = frames.cut_records(np.array([0, 99, 100, 700]), 500, min_length_bp=100)
    assert chunks.num_chunks.tolist() == [0, 0, 1, 2]
    assert chunks.start.tolist() == [99, 199, 199 + 349]


def test_all_codons_translate_by_the_standard_code_on_both_strands() -> None:
    codons = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    assert find_frames(codons, 300) == find_frames_plainly(codons, 300)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    records = path.read_text().split(">")[1:]
    return [(name, rest.replace("\n", "")) for name, rest in (r.split("\n", 1) for r in records)]


def test_the_originals_files_are_reproduced(shared: Path, tmp_path: Path) -> None:
    legacy = shared / "legacy"
    store = build_frame_store(
        [str(legacy / "test_with_orfs.fa")], tmp_path / "store", StoreSettings(500)
    )
    chunks = zip(store.chunk_ids(0, store.num_chunks), store.chunk_sequences(0, 2), strict=True)
    ids = store.frame_ids(0, store.num_rows)
    rows = np.arange(store.num_rows)
    dna = zip(ids, store.sequences("dna").get_many(rows), strict=True)
    protein = zip(ids, store.sequences("protein").get_many(rows), strict=True)
    assert list(chunks) == read_pairs(legacy / "test_with_orfs_chunked500.fa")
    assert list(dna) == read_pairs(legacy / "test_with_orfs_identified_nucleotide.fa")
    assert list(protein) == read_pairs(legacy / "test_with_orfs_identified_protein.faa")

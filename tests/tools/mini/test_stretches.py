from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio.Seq import Seq
from virnucpro_dnabert_s import backend as dna_backend
from virnucpro_esm2 import backend as protein_backend
from virnucpro_esm2.tokens import TOKENS

from tests.tools.mini.small import SIZES, as_codes, random_chunks, unpad
from tools.mini.export import export_model
from tools.mini.model import MiniModel
from tools.mini.stretches import (
    DNA_PAD,
    PROTEIN_PAD,
    StretchRule,
    find_stretches,
    read_chunks,
    reverse_complement,
)


def plain_stretches(chunk: str, rule: StretchRule) -> list[tuple[int, int, int, str, bool]]:
    """Return length, frame, start, protein and whether it is the whole frame, of each stretch."""
    found = []
    for code in range(6):
        strand = chunk if code < 3 else str(Seq(chunk).reverse_complement())
        frame = strand[code % 3 :]
        codons = [frame[at : at + 3] for at in range(0, len(frame) - 2, 3)]
        letters = [
            "*" if set(codon) - set("ACGT") else str(Seq(codon).translate()) for codon in codons
        ]
        start = 0
        for piece in "".join(letters).split("*"):
            if len(piece) >= rule.min_codons:
                found.append((len(piece), code, start, piece, len(piece) == len(codons)))
            start += len(piece) + 1
    found.sort(key=lambda one: (-one[0], one[1], one[2]))
    return found[: rule.num_stretches]


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 4, 5, 31, 91, 300])
@pytest.mark.parametrize("rule", [StretchRule(1, 1), StretchRule(2, 20), StretchRule(7, 3)])
@pytest.mark.parametrize("letters", ["ACGT", "AACCGGTTACGTN", "ACG", "N", "TAA"])
def test_stretches_are_those_of_the_plain_reference(
    length: int, rule: StretchRule, letters: str
) -> None:
    chunks = random_chunks(30, length, seed=length, letters=letters)
    found = find_stretches(as_codes(chunks), rule)
    tokens = read_chunks(as_codes(chunks), rule, word_bp=3)
    assert found.length_CN.shape == (30, rule.num_stretches)
    for number, chunk in enumerate(chunks):
        wanted = plain_stretches(chunk, rule)
        num = len(wanted)
        assert tokens.is_stretch_CN[number].tolist() == [
            index < num for index in range(rule.num_stretches)
        ]
        for index, (size, code, start, protein, is_whole) in enumerate(wanted):
            assert int(found.length_CN[number, index]) == size
            assert int(found.frame_CN[number, index]) == code
            assert int(found.start_CN[number, index]) == start
            assert bool(found.is_whole_CN[number, index]) == is_whole
            letters_read = tokens.protein_CNT[number, index, 1 : size + 1].tolist()
            assert "".join(TOKENS[token] for token in letters_read) == protein
            features = [float(is_whole), np.log(size / 100), size / 100, 3 * size / length]
            assert tokens.features_CNK[number, index].tolist() == pytest.approx(features, rel=1e-5)


def test_both_strands_have_the_same_stretches() -> None:
    codes_CL = as_codes(random_chunks(50, 200, seed=5))
    rule = StretchRule(3, 10)
    first, second = (find_stretches(x, rule) for x in (codes_CL, reverse_complement(codes_CL)))
    assert torch.equal(first.length_CN, second.length_CN)
    is_sole = (first.length_CN[:, :-1] != first.length_CN[:, 1:]).all(1)
    assert torch.equal(first.codons_CNK[is_sole][:, :2], second.codons_CNK[is_sole][:, :2])


@pytest.mark.parametrize("length", [31, 90, 96])
@pytest.mark.parametrize("word_bp", [3, 6])
@pytest.mark.parametrize("letters", ["ACGT", "AACCGGTTACGTN"])
def test_tokens_are_those_of_the_backends(
    tmp_path: Path, length: int, word_bp: int, letters: str
) -> None:
    rule = StretchRule(2, 5)
    export_model(tmp_path, MiniModel(dataclasses.replace(SIZES, word_bp=word_bp)), rule)
    weights = dna_backend.open_weights(str(tmp_path / "dnabert_s"))
    chunks = random_chunks(40, length, seed=length, letters=letters)
    tokens = read_chunks(as_codes(chunks), rule, word_bp)
    proteins = [one[3] for chunk in chunks for one in plain_stretches(chunk, rule)]
    assert len(proteins) > 40
    read = (
        (tokens.dna_CT, DNA_PAD, dna_backend, chunks),
        (tokens.protein_CNT[tokens.is_stretch_CN], PROTEIN_PAD, protein_backend, proteins),
    )
    for tokens_FT, padding, backend, sequences in read:
        batch = backend.load_collator(weights)(np.arange(len(sequences)), sequences)
        wanted = batch.token_ids_T.split(batch.lengths_B.tolist())
        assert unpad(tokens_FT, padding) == [one.tolist() for one in wanted]

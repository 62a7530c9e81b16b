from __future__ import annotations

import numpy as np
import pytest
import torch

from virnucpro.config import FrameRule
from virnucpro.sequences import frames
from virnucpro.training.stretches import CODE_OF_BYTE, NO_CODON, find_stretches, reverse_complement


def as_codes(letters: bytes, length: int) -> torch.Tensor:
    codes = np.frombuffer(letters.translate(CODE_OF_BYTE), np.uint8).copy()
    return torch.from_numpy(codes).view(-1, length)


@pytest.mark.parametrize("length", [3, 4, 5, 31, 91, 300])
@pytest.mark.parametrize("numbers", [(1, 1, 1), (2, 20, 1), (7, 3, 4), (3, 5, 2)])
@pytest.mark.parametrize("letters", [b"ACGT", b"AACCGGTTACGTn", b"ACG", b"N", b"TAA"])
def test_stretches_are_those_of_letters(
    length: int, numbers: tuple[int, int, int], letters: bytes
) -> None:
    rule = FrameRule("stretches", *numbers)
    drawn = np.random.default_rng(length).choice(list(letters), 30 * length)
    text = drawn.astype(np.uint8).tobytes()
    start = np.arange(30) * length
    wanted = frames.find_stretches(text, start, np.full(30, length), rule)
    found = find_stretches(as_codes(text, length), rule)
    assert found.length_CN.shape == (30, rule.max_stretches)
    is_found_CN = found.length_CN > 0
    np.testing.assert_array_equal(is_found_CN.nonzero()[:, 0], wanted.chunk)
    np.testing.assert_array_equal(found.length_CN[is_found_CN], wanted.protein_length)
    np.testing.assert_array_equal(found.frame_CN[is_found_CN], wanted.code)
    np.testing.assert_array_equal(found.start_CN[is_found_CN], wanted.first_codon)
    codons = found.codons_CNK[is_found_CN]
    amino_acids = frames.translate_codons(rule.genetic_code)
    proteins = "".join(amino_acids[codon] for codon in codons[codons != NO_CODON].tolist())
    assert proteins == wanted.proteins.decode()


def test_both_strands_have_the_same_stretches() -> None:
    codes_CL = torch.randint(0, 4, (50, 200), generator=torch.Generator().manual_seed(5)).byte()
    rule = FrameRule("stretches", 3, 10)
    first, second = (find_stretches(x, rule) for x in (codes_CL, reverse_complement(codes_CL)))
    assert torch.equal(first.length_CN, second.length_CN)
    is_sole = (first.length_CN[:, :-1] != first.length_CN[:, 1:]).all(1)
    assert torch.equal(first.codons_CNK[is_sole][:, :2], second.codons_CNK[is_sole][:, :2])

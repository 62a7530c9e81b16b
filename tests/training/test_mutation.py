from __future__ import annotations

import pytest
import torch

from virnucpro.config import FrameRule
from virnucpro.sequences.frames import translate_codons
from virnucpro.training.mutation import Mutator
from virnucpro.training.stretches import (
    AMBIGUOUS,
    NO_CODON,
    bases_of_codons,
    find_stretches,
    put_bases,
)

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
AMINO_ACIDS = translate_codons(1)


def mutator(rate: float, genetic_code: int = 1) -> Mutator:
    return Mutator(rate, torch.Generator().manual_seed(0), genetic_code)


def random_codes(num: int, length: int) -> torch.Tensor:
    """Return chunks of random bases."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 4, (num, length), generator=generator).byte()


RULES = [FrameRule("stretches", 2, 15), FrameRule("stretches", 2, 15, 4)]


@pytest.mark.parametrize("length", [150, 151, 152])
@pytest.mark.parametrize("is_ambiguous", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_mutated_stretches_stay_open_and_nothing_else_changes(
    rule: FrameRule, is_ambiguous: bool, length: int
) -> None:
    codes_CL = random_codes(50, length)
    if is_ambiguous:
        codes_CL[:, ::75] = AMBIGUOUS
    before = find_stretches(codes_CL, rule)
    mutated_CL = mutator(1.0, rule.genetic_code).mutate_chunks(codes_CL, rule)
    assert torch.equal(mutated_CL == AMBIGUOUS, codes_CL == AMBIGUOUS)
    is_in_CL = torch.zeros_like(codes_CL, dtype=torch.bool)
    for number in range(rule.max_stretches):
        index_CX = bases_of_codons(codes_CL, before, number)
        is_codon_CK = before.codons_CNK[:, number] != NO_CODON
        is_in_CL = put_bases(is_in_CL, index_CX, is_codon_CK, torch.ones_like(index_CX))
    assert torch.equal(mutated_CL[~is_in_CL], codes_CL[~is_in_CL])
    assert 0.02 < (mutated_CL != codes_CL).float().mean() < 0.5
    # The longest stretch of each chunk is still one, maybe as a part of a longer one.
    index_CX = bases_of_codons(mutated_CL, before, 0)
    is_reverse_C1 = before.frame_CN[:, :1] >= 3
    bases_CX = mutated_CL.gather(1, index_CX).long()
    bases_CK3 = torch.where(is_reverse_C1, 3 - bases_CX, bases_CX).unflatten(1, (-1, 3))
    codons_CK = (bases_CK3 * torch.tensor([16, 4, 1])).sum(2)
    is_codon_CK = before.codons_CNK[:, 0] != NO_CODON
    amino_acids = translate_codons(rule.genetic_code)
    assert "*" not in {amino_acids[codon] for codon in codons_CK[is_codon_CK].tolist()}
    assert (find_stretches(mutated_CL, rule).length_CN[:, 0] >= before.length_CN[:, 0]).all()


def test_nothing_is_mutated_at_a_rate_of_0() -> None:
    codes_CL = random_codes(20, 150)
    assert torch.equal(mutator(0.0).mutate_chunks(codes_CL, RULES[0]), codes_CL)


def test_similar_residues_and_codons_of_the_stretch_are_preferred() -> None:
    def codon(letter: str) -> int:
        return AMINO_ACIDS.index(letter)

    # Leucine in a frame that has all residues alike, over and over.
    frame_K = torch.tensor([codon("L")] * 200 + [codon(letter) for letter in RESIDUES] * 10)
    drawn_FK = mutator(1.0)(frame_K.expand(400, -1))[:, :200]
    residues = "".join(AMINO_ACIDS[codon] for codon in drawn_FK.flatten().tolist())
    share = {letter: residues.count(letter) / len(residues) for letter in RESIDUES}
    # BLOSUM62: isoleucine 2, methionine 2, aspartate -4; all are as frequent here.
    assert share["I"] == pytest.approx(share["M"], rel=0.2)
    assert share["I"] == pytest.approx(8 * share["D"], rel=0.4)
    used = torch.isin(drawn_FK, frame_K).float().mean()
    assert used > 0.9


def test_rates_are_the_stretches_own_and_what_is_no_codon_stays() -> None:
    codon_FK = torch.randint(0, 40, (2000, 60), generator=torch.Generator().manual_seed(2))
    codon_FK[:, 30:] = NO_CODON
    drawn_FK = mutator(0.6)(codon_FK)
    assert (drawn_FK[:, 30:] == NO_CODON).all()
    changed_F = (drawn_FK != codon_FK)[:, :30].float().mean(1)
    assert changed_F.min() == 0
    assert changed_F.max() < 0.85
    assert 0.15 < changed_F.mean() < 0.3

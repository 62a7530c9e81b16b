from __future__ import annotations

import pytest
import torch
from virnucpro_esm2.tokens import TOKENS

from tools.mini.frames import (
    DNA_SPECIAL,
    NO_CODON,
    NO_RESIDUE,
    TOKEN_OF_CODON,
    first_word_id,
    make_frames,
)
from tools.mini.genomes import AMBIGUOUS
from tools.mini.mutation import Mutator

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def mutator(rate: float) -> Mutator:
    return Mutator(rate, torch.Generator().manual_seed(0))


def random_codes(num: int, length: int) -> torch.Tensor:
    """Return chunks in which frames are often open: without T few stop."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 3, (num, length), generator=generator).byte()


@pytest.mark.parametrize("length", [90, 91, 92])
@pytest.mark.parametrize("is_ambiguous", [False, True])
def test_mutated_frames_are_open_and_as_long_and_their_dna_codes_for_their_proteins(
    is_ambiguous: bool, length: int
) -> None:
    codes_CL = random_codes(50, length)
    if is_ambiguous:
        codes_CL[:, ::50] = AMBIGUOUS
    exact, mutated = make_frames(codes_CL, 3), make_frames(codes_CL, 3, mutator(1.0))
    assert torch.equal(exact.chunk_F, mutated.chunk_F)
    assert len(exact.chunk_F) > 50
    for before_FT, after_FT, num_special in zip(
        exact[1:], mutated[1:], (len(DNA_SPECIAL), TOKENS.index("L")), strict=True
    ):
        assert torch.equal(before_FT < num_special, after_FT < num_special)
        assert 0.1 < (before_FT == after_FT).float().mean() < 0.95
    if is_ambiguous:
        return  # a protein has no gap there, and the DNA is cut where the protein ends
    first = first_word_id(3)
    for dna_T, protein_T in zip(mutated.dna_FT, mutated.protein_FT, strict=True):
        residues = TOKEN_OF_CODON[dna_T[dna_T >= first] - first]
        assert (residues != NO_RESIDUE).all()
        assert protein_T[protein_T >= TOKENS.index("L")].tolist() == residues.tolist()


def test_nothing_is_mutated_at_a_rate_of_0() -> None:
    codes_CL = random_codes(20, 90)
    for exact, mutated in zip(
        make_frames(codes_CL, 6), make_frames(codes_CL, 6, mutator(0.0)), strict=True
    ):
        assert torch.equal(exact, mutated)


def test_similar_residues_and_codons_of_the_frame_are_preferred() -> None:
    def codon(letter: str) -> int:
        return int((TOKENS.index(letter) == TOKEN_OF_CODON).nonzero()[0])

    # Leucine in a frame that has all residues alike, over and over.
    frame_K = torch.tensor([codon("L")] * 200 + [codon(letter) for letter in RESIDUES] * 10)
    drawn_FK = mutator(1.0)(frame_K.expand(400, -1))[:, :200]
    residues = TOKEN_OF_CODON[drawn_FK]
    share = {
        letter: float((residues == TOKENS.index(letter)).float().mean()) for letter in RESIDUES
    }
    # BLOSUM62: isoleucine 2, methionine 2, aspartate -4; all are as frequent here.
    assert share["I"] == pytest.approx(share["M"], rel=0.2)
    assert share["I"] == pytest.approx(8 * share["D"], rel=0.4)
    used = torch.isin(drawn_FK, frame_K).float().mean()
    assert used > 0.9


def test_rates_are_the_frames_own_and_what_is_no_codon_stays() -> None:
    codon_FK = torch.randint(0, 40, (2000, 60), generator=torch.Generator().manual_seed(2))
    codon_FK[:, 30:] = NO_CODON
    drawn_FK = mutator(0.6)(codon_FK)
    assert (drawn_FK[:, 30:] == NO_CODON).all()
    changed_F = (drawn_FK != codon_FK)[:, :30].float().mean(1)
    assert changed_F.min() == 0
    assert changed_F.max() < 0.85
    assert 0.15 < changed_F.mean() < 0.3

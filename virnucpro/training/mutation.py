"""Draws codons of stretches anew as evolution does, so that no genome is learned by heart.

Shapes: C chunks of L bases, F stretches, K codons, M codons that are drawn anew.
"""

from __future__ import annotations

from functools import cache

import torch
from Bio.Align import substitution_matrices
from torch import Tensor

from virnucpro.config.frame_rule import STANDARD_CODE, FrameRule
from virnucpro.sequences.frames import translate_codons
from virnucpro.training.stretches import (
    NO_CODON,
    bases_of_codons,
    find_stretches,
    put_bases,
    write_codons,
)

_PRIOR_CODONS = 20.0
"""How many codons, spread over all, are added to those of a stretch when its usage is counted."""


class Mutator:
    """Draws some codons of a stretch anew, for a similar amino acid or for the same.

    BLOSUM62 (Henikoff and Henikoff 1992) says how often one amino acid takes the place of another.
    An entry is twice the base-2 logarithm of how much more often than by chance this happens in
    related proteins. Codons are drawn as often as the stretch uses them, so its composition stays.
    No codon becomes a stop.
    """

    def __init__(
        self, max_rate: float, generator: torch.Generator, genetic_code: int = STANDARD_CODE
    ) -> None:
        self._max_rate = max_rate
        self._generator = generator
        self._odds = _make_odds(genetic_code).to(generator.device)

    def __call__(self, codon_FK: Tensor) -> Tensor:
        """Return int64 (F, K); each stretch has a rate of its own, from 0 to the largest.

        Args:
            codon_FK: int64, codons as `find_stretches` numbers them; `NO_CODON` stays.
        """
        is_codon_FK = codon_FK != NO_CODON
        known_FK = codon_FK.clamp(max=NO_CODON - 1)
        usage_F64 = torch.full(
            (len(codon_FK), NO_CODON), _PRIOR_CODONS / NO_CODON, device=codon_FK.device
        )
        usage_F64.scatter_add_(1, known_FK, is_codon_FK.float())
        drawn_FK = self._uniform(*codon_FK.shape)
        rate_F1 = self._max_rate * self._uniform(len(codon_FK), 1)
        is_hit_FK = is_codon_FK & (self._uniform(*codon_FK.shape) < rate_F1)
        # Only of the codons that are drawn anew: they are a small part.
        stretch_M, place_M = is_hit_FK.nonzero(as_tuple=True)
        known_M = codon_FK[stretch_M, place_M]
        odds_M64 = self._odds[known_M]
        summed_M64 = (odds_M64 * usage_F64[stretch_M]).cumsum(1)
        drawn_M1 = drawn_FK[stretch_M, place_M, None] * summed_M64[:, -1:]
        other_M1 = torch.searchsorted(summed_M64, drawn_M1, right=True).clamp(max=NO_CODON - 1)
        # Sums that a GPU makes in parallel may let a codon without odds in by a rounding error.
        has_odds_M = odds_M64.gather(1, other_M1).squeeze(1) > 0
        other_M = torch.where(has_odds_M, other_M1.squeeze(1), known_M)
        return codon_FK.index_put((stretch_M, place_M), other_M)

    def mutate_chunks(self, codes_CL: Tensor, rule: FrameRule) -> Tensor:
        """Return the chunks with mutated codons in their stretches, the longest first.

        Codons that share a base with a longer stretch stay as that stretch has them. Stretches of
        other frames over the same bases may get stops, as they do in evolution.
        """
        stretches = find_stretches(codes_CL, rule)
        is_read_CL = torch.zeros_like(codes_CL, dtype=torch.bool)
        for number in range(rule.max_stretches):
            codons_CK = stretches.codons_CNK[:, number].long()
            index_CX = bases_of_codons(codes_CL, stretches, number)
            is_read_CK = is_read_CL.gather(1, index_CX).view(len(codes_CL), -1, 3).any(2)
            drawn_CK = self(codons_CK.masked_fill(is_read_CK, NO_CODON))
            codes_CL = write_codons(codes_CL, stretches, number, drawn_CK)
            is_codon_CK = codons_CK != NO_CODON
            is_read_CL = put_bases(is_read_CL, index_CX, is_codon_CK, torch.ones_like(index_CX))
        return codes_CL

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self._generator.device, generator=self._generator)


@cache
def _make_odds(genetic_code: int) -> Tensor:
    """Return float32 (64, 64): by how much a codon in the first place favours one in the second."""
    blosum = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    residues = translate_codons(genetic_code)
    odds = torch.zeros(NO_CODON, NO_CODON)
    for row, first in enumerate(residues):
        for column, second in enumerate(residues):
            if first != "*" and second != "*":
                odds[row, column] = 2.0 ** (float(blosum[first][second]) / 2)
    return odds

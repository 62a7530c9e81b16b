"""The longest stretches between stops, for whole batches of chunks on any device.

`virnucpro.sequences.frames` finds the same stretches in letters. Here the chunks are tensors, so
that their codons can be changed on a GPU.

Shapes: C chunks of L bases, 6 frames of K codons (padded to those of the first frame), N stretches
of a chunk, X bases of a stretch.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from virnucpro.config.frame_rule import FrameRule
from virnucpro.sequences.frames import code_bases, translate_codons

AMBIGUOUS = 4
"""The code of every letter but A, C, G and T, whose codes are 0 to 3."""

CODE_OF_BYTE = code_bases(AMBIGUOUS)
NO_CODON = 64
"""Three bases of which one is ambiguous or beyond the end."""


class Stretches(NamedTuple):
    """The stretches of chunks, each chunk's longest first; equal ones by frame, then by start.

    Attributes:
        length_CN: int64, codons; 0 where a chunk has no such stretch.
        frame_CN: int64, the frame's code: 0 to 2 forward by offset, 3 to 5 the other strand.
        start_CN: int64, the first codon, counted in the frame.
        codons_CNK: uint8, the codons from the start on; `NO_CODON` beyond the stretch.
    """

    length_CN: Tensor
    frame_CN: Tensor
    start_CN: Tensor
    codons_CNK: Tensor


def find_stretches(codes_CL: Tensor, rule: FrameRule) -> Stretches:
    """Return the stretches of chunks of one length (at least 3).

    Args:
        codes_CL: uint8, bases as `CODE_OF_BYTE` codes them.
        rule: Which stretches count.
    """
    strands_C2L = torch.stack((codes_CL, reverse_complement(codes_CL)), 1)
    codons_C6K = _number_codons(strands_C2L)
    num_codons = codons_C6K.shape[2]
    is_residue_C6K = _mark_residues(rule.genetic_code, codes_CL.device)[codons_C6K.int()]
    position_K = torch.arange(num_codons, dtype=torch.int32, device=codes_CL.device)
    break_C6K = torch.where(is_residue_C6K, -1, position_K).cummax(2).values
    length_C6K = position_K - break_C6K
    is_end_C6K = is_residue_C6K & ~functional.pad(is_residue_C6K[..., 1:], (0, 1))
    is_end_C6K &= length_C6K >= rule.min_codons
    # One number ranks a stretch: its length first, then its frame, then its start.
    place_6K = torch.arange(6 * num_codons, dtype=torch.int32, device=codes_CL.device).flip(0)
    rank_C6K = length_C6K * (6 * num_codons) + place_6K.view(6, num_codons)
    rank_CX = rank_C6K.masked_fill(~is_end_C6K, -1).flatten(1)
    num_ranked = min(rule.max_stretches, rank_CX.shape[1])
    rank_CN, index_CN = rank_CX.topk(num_ranked, 1)
    rank_CN, index_CN = (
        functional.pad(x, (0, rule.max_stretches - num_ranked), value=value)
        for x, value in ((rank_CN, -1), (index_CN, 0))
    )
    length_CN = torch.where(rank_CN >= 0, rank_CN // (6 * num_codons), 0).long()
    frame_CN = index_CN // num_codons
    start_CN = (index_CN % num_codons + 1 - length_CN).clamp(min=0)
    index_CNK = (start_CN[..., None] + position_K).clamp(max=num_codons - 1)
    frames_CNK = codons_C6K.gather(1, frame_CN[..., None].expand(-1, -1, num_codons))
    is_inside_CNK = position_K < length_CN[..., None]
    codons_CNK = frames_CNK.gather(2, index_CNK).masked_fill(~is_inside_CNK, NO_CODON)
    return Stretches(length_CN, frame_CN, start_CN, codons_CNK)


def write_codons(codes_CL: Tensor, stretches: Stretches, number: int, codons_CK: Tensor) -> Tensor:
    """Return the chunks with other codons in one of their stretches; `NO_CODON` writes nothing.

    Args:
        codes_CL: uint8, the chunks.
        stretches: What `find_stretches` found in them.
        number: Which of a chunk's stretches.
        codons_CK: int64, its codons from its start on.
    """
    bases_CX = torch.stack((codons_CK // 16, codons_CK // 4 % 4, codons_CK % 4), 2).flatten(1)
    is_reverse_C1 = stretches.frame_CN[:, number, None] >= 3
    bases_CX = torch.where(is_reverse_C1, 3 - bases_CX, bases_CX)
    index_CX = bases_of_codons(codes_CL, stretches, number)
    return put_bases(codes_CL, index_CX, codons_CK != NO_CODON, bases_CX)


def put_bases(values_CL: Tensor, index_CX: Tensor, is_codon_CK: Tensor, put_CX: Tensor) -> Tensor:
    """Return the values of bases, with others put where codons are."""
    # What must not be put anywhere goes to a column that is cut off.
    is_base_CX = is_codon_CK.repeat_interleave(3, 1)
    index_CX = index_CX.masked_fill(~is_base_CX, values_CL.shape[1])
    padded = functional.pad(values_CL, (0, 1))
    return padded.scatter(1, index_CX, put_CX.to(values_CL.dtype))[:, :-1]


def bases_of_codons(codes_CL: Tensor, stretches: Stretches, number: int) -> Tensor:
    """Return int64 (C, 3 K): where the bases of a stretch's codons stand in its chunk.

    Beyond the stretch the places mean nothing, but lie in the chunk.
    """
    num_bases = codes_CL.shape[1]
    frame_C1 = stretches.frame_CN[:, number, None]
    first_C1 = frame_C1 % 3 + 3 * stretches.start_CN[:, number, None]
    num_places = 3 * stretches.codons_CNK.shape[2]
    index_CX = first_C1 + torch.arange(num_places, device=codes_CL.device)
    index_CX = torch.where(frame_C1 >= 3, num_bases - 1 - index_CX, index_CX)
    return index_CX.clamp(0, num_bases - 1)


def reverse_complement(codes_CL: Tensor) -> Tensor:
    """Return the other strands of chunks."""
    return torch.where(codes_CL == AMBIGUOUS, AMBIGUOUS, 3 - codes_CL).flip(1)


@cache
def _mark_residues(genetic_code: int, device: torch.device) -> Tensor:
    """Return bool (65,): which codons have an amino acid; `NO_CODON` has none."""
    letters = translate_codons(genetic_code)
    return torch.tensor([letter != "*" for letter in letters] + [False], device=device)


def _number_codons(strands_C2L: Tensor) -> Tensor:
    """Return uint8 (C, 6, K): the codons of each frame; K is the number in the longest."""
    first, second, third = (strands_C2L[:, :, shift : shift - 2 or None] for shift in range(3))
    is_ambiguous = (first | second | third) >= AMBIGUOUS
    number = (16 * first + 4 * second + third).masked_fill(is_ambiguous, NO_CODON)
    num_codons = strands_C2L.shape[2] // 3
    number = functional.pad(number, (0, 3 * num_codons - number.shape[2]), value=NO_CODON)
    # By codon and phase, and then by phase and codon.
    return number.view(-1, 2, num_codons, 3).transpose(2, 3).flatten(1, 2)

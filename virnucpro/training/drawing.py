"""How often sequences are drawn, and how their bases are read with sequencing errors.

Shapes: S sequences, J kinds of sequences, U groups within a kind, C chunks of L bases.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from virnucpro.training.stretches import AMBIGUOUS

MAX_ERROR_RATE = 0.02
INDEL_SHARE = 0.1


def weigh_sequences(size_S: Tensor, kind_S: Tensor, group_S: Tensor, share_J: Tensor) -> Tensor:
    """Return float64 (S,), 1 in all: how often each sequence is drawn.

    Groups of a kind are drawn by the square root of their bases, so that a species with many
    genomes does not hide the others. Sequences of a group are drawn by their bases.

    Args:
        size_S: The bases of each sequence.
        kind_S: int64, the kind of each sequence, an index of `share_J`.
        group_S: int64, the group of each sequence.
        share_J: float64, how often a sequence of each kind is drawn.
    """
    # One number for each group of a kind, which sorts faster than pairs.
    num_groups = int(group_S.max()) + 1
    units_U, unit_S = torch.unique(kind_S * num_groups + group_S, return_inverse=True)
    kind_U = units_U // num_groups
    size_S = size_S.double()
    share_U = share_J[kind_U] * share_out(torch.bincount(unit_S, size_S).sqrt(), kind_U)
    weight_S = share_U[unit_S] * share_out(size_S, unit_S)
    return weight_S / weight_S.sum()


def share_out(size: Tensor, parent: Tensor) -> Tensor:
    """Return each size as a share of all those with the same parent."""
    return size / torch.bincount(parent, size).clamp(min=1e-300)[parent]


def read_with_errors(
    read: Callable[[Tensor], Tensor],
    first_C: Tensor,
    end_C: Tensor,
    length_bp: int,
    generator: torch.Generator,
) -> Tensor:
    """Return uint8 (C, L): the codes of chunks with simulated sequencing errors.

    Half of the chunks are exact. The others have error rates up to `MAX_ERROR_RATE`.

    Args:
        read: Returns the codes at places, int64 (C, L); the places of a chunk never fall.
        first_C: int64, the place of each chunk's first base.
        end_C: int64, the place behind the last base of its sequence.
        length_bp: L.
        generator: Its device is that of all tensors.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=first_C.device, generator=generator)

    index_CL = first_C[:, None] + torch.arange(length_bp, device=first_C.device)
    rate_C1 = MAX_ERROR_RATE * (uniform(len(first_C), 1) * 2 - 1).clamp(min=0)
    event_CL = uniform(*index_CL.shape)
    # An inserted base repeats the previous base, as in runs of one base. A deletion skips a base.
    indel_C1 = rate_C1 * INDEL_SHARE / 2
    steps_CL = (event_CL < indel_C1).long() - (event_CL > 1 - indel_C1).long()
    index_CL = torch.minimum(index_CL + steps_CL.cumsum(1), end_C[:, None] - 1)
    codes_CL = read(torch.maximum(index_CL, first_C[:, None]))
    other_CL = torch.randint(1, 4, codes_CL.shape, device=first_C.device, generator=generator)
    is_wrong_CL = (uniform(*codes_CL.shape) < rate_C1) & (codes_CL != AMBIGUOUS)
    return torch.where(is_wrong_CL, (codes_CL + other_CL) % 4, codes_CL).byte()

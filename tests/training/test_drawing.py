from __future__ import annotations

import torch

from virnucpro.training.drawing import (
    INDEL_SHARE,
    MAX_ERROR_RATE,
    read_with_errors,
    weigh_sequences,
)
from virnucpro.training.stretches import AMBIGUOUS


def test_groups_weigh_by_the_root_of_their_bases() -> None:
    weights = weigh_sequences(
        size_S=torch.tensor([300, 100, 100, 50, 7]),
        kind_S=torch.tensor([0, 0, 0, 1, 2]),
        # A group of the same number in another kind is another group.
        group_S=torch.tensor([0, 0, 1, 0, 1]),
        share_J=torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64),
    )
    wanted = torch.tensor([0.5 * 2 / 3 * 0.75, 0.5 * 2 / 3 * 0.25, 0.5 / 3, 0.3, 0.1]) / 0.9
    torch.testing.assert_close(weights.float(), wanted)


def test_errors_are_as_frequent_as_they_should_be() -> None:
    generator = torch.Generator().manual_seed(0)
    # Neighbours differ, so that a base tells how far the reading has moved.
    genome_N = torch.arange(4000) % 4
    genome_N[::50] = AMBIGUOUS
    num_chunks, length = 4000, 300
    first_C = torch.randint(0, 3700, (num_chunks,), generator=generator)
    places: list[torch.Tensor] = []

    def read(index_CL: torch.Tensor) -> torch.Tensor:
        places.append(index_CL)
        return genome_N[index_CL].byte()

    codes_CL = read_with_errors(read, first_C, first_C + 320, length, generator)
    index_CL = places[0]
    assert (index_CL >= first_C[:, None]).all()
    assert (index_CL < first_C[:, None] + 320).all()
    steps = index_CL.diff(dim=1)
    # Half of the chunks have rates that are the largest one's half in the mean.
    rate = MAX_ERROR_RATE / 4
    for step in (0, 2):
        share = (steps == step).float().mean()
        assert abs(share - rate * INDEL_SHARE / 2) < 0.2 * rate * INDEL_SHARE / 2
    is_wrong_CL = codes_CL != genome_N[index_CL]
    assert abs(is_wrong_CL.float().mean() - rate) < 0.1 * rate
    assert not is_wrong_CL[genome_N[index_CL] == AMBIGUOUS].any()
    assert codes_CL[is_wrong_CL].max() < 4
    assert 0.45 < (~is_wrong_CL.any(1) & (steps == 1).all(1)).float().mean() < 0.7

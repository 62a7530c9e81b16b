from __future__ import annotations

import pytest
import torch

from virnucpro.backend.changes import Changes, LowRank, apply_change, check_changes, digest_changes
from virnucpro.errors import WeightsError


def make_low_rank(num_outputs: int = 5, num_inputs: int = 3, rank: int = 2) -> LowRank:
    generator = torch.Generator().manual_seed(0)
    return LowRank(
        torch.randn(rank, num_inputs, generator=generator),
        torch.randn(num_outputs, rank, generator=generator),
    )


def test_a_low_rank_is_added_before_rounding() -> None:
    change = make_low_rank()
    weight_OI = torch.full((5, 3), 100.0).to(torch.bfloat16)
    changed_OI = apply_change(weight_OI, change)
    assert changed_OI.dtype == torch.float32
    assert torch.equal(changed_OI, 100 + change.up_OR @ change.down_RI)
    # In bfloat16 the neighbours of 100 are half a unit away.
    assert not torch.equal(changed_OI, changed_OI.bfloat16().float())


def test_a_tensor_replaces_the_parameter() -> None:
    replacement = torch.tensor([1.0, 2.0])
    assert torch.equal(apply_change(torch.zeros(2), replacement), replacement)


def test_the_digest_tells_names_shapes_and_numbers_apart() -> None:
    change, bias = make_low_rank(), torch.arange(4.0)
    changes: list[Changes] = [
        {"a.weight": change, "a.bias": bias},
        {"b.weight": change, "a.bias": bias},
        {"a.weight": change, "a.bias": bias.view(2, 2)},
        {"a.weight": LowRank(change.down_RI, -change.up_OR), "a.bias": bias},
        {"a.weight": change},
        {},
    ]
    digests = [digest_changes(one) for one in changes]
    assert len(set(digests)) == len(changes)
    assert digest_changes({"a.bias": bias, "a.weight": change}) == digests[0]
    # A view with the same numbers is the same change.
    columns = LowRank(change.down_RI.T.contiguous().T, change.up_OR)
    assert digest_changes({"a.weight": columns, "a.bias": bias}) == digests[0]


def test_changes_must_fit_the_encoder() -> None:
    shapes = {"a.weight": (5, 3), "a.bias": (5,)}
    check_changes({"a.weight": make_low_rank(), "a.bias": torch.zeros(5)}, shapes)
    with pytest.raises(WeightsError, match=r"'b\.weight' of shape \(5, 3\).* no such parameter"):
        check_changes({"b.weight": make_low_rank()}, shapes)
    with pytest.raises(WeightsError, match=r"of shape \(5, 4\), and .* one of shape \(5, 3\)"):
        check_changes({"a.weight": make_low_rank(num_inputs=4)}, shapes)
    with pytest.raises(WeightsError, match=r"'a\.bias' of shape \(4,\)"):
        check_changes({"a.bias": torch.zeros(4)}, shapes)

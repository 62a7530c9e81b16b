"""Adapters: they begin at nothing, and merged weights compute what they computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from virnucpro.backend.changes import LowRank, apply_change
from virnucpro.errors import UsageError
from virnucpro.training.lora import AdaptedLinear, read_changes, train_adapters


def make_encoder() -> nn.Module:
    torch.manual_seed(1)
    encoder = nn.Module()
    encoder.layers = nn.ModuleList(
        nn.ModuleDict({"qkv": nn.Linear(6, 18), "fc1": nn.Linear(6, 12)}) for _ in range(2)
    )
    return encoder


def test_an_adapter_adds_nothing_at_first():
    layer = nn.Linear(6, 18)
    x = torch.randn(5, 6)
    assert torch.equal(AdaptedLinear(layer, 3)(x), layer(x))


def test_only_adapters_of_the_chosen_kinds_are_trained():
    encoder = make_encoder()
    train_adapters(encoder, ["qkv"], rank=3)
    trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert trained == {
        f"layers.{number}.qkv.{matrix}" for number in range(2) for matrix in ("down_RI", "up_OR")
    }


def test_a_merged_weight_computes_what_the_adapter_computed():
    encoder = make_encoder()
    plain = encoder.get_submodule("layers.1.qkv")
    weight = plain.weight.detach().clone()
    train_adapters(encoder, ["qkv"], rank=3)
    adapted = encoder.get_submodule("layers.1.qkv")
    nn.init.normal_(adapted.up_OR)
    changes = read_changes(encoder)
    assert set(changes) == {"layers.0.qkv.weight", "layers.1.qkv.weight"}
    change = changes["layers.1.qkv.weight"]
    assert isinstance(change, LowRank)
    x = torch.randn(5, 6)
    merged = nn.functional.linear(x, apply_change(weight, change), plain.bias)
    torch.testing.assert_close(adapted(x), merged, rtol=0, atol=1e-5)
    # Copies: a later step of the training must not change them.
    nn.init.zeros_(adapted.up_OR)
    assert change.up_OR.any()


def test_without_adapters_every_trained_parameter_is_a_change():
    encoder = make_encoder()
    encoder.requires_grad_(False)
    encoder.get_submodule("layers.0.fc1").requires_grad_(True)
    changes = read_changes(encoder)
    assert set(changes) == {"layers.0.fc1.weight", "layers.0.fc1.bias"}
    assert torch.equal(changes["layers.0.fc1.bias"], encoder.get_submodule("layers.0.fc1").bias)


def test_an_encoder_without_such_layers_is_refused():
    with pytest.raises(UsageError, match="no linear layers of the kinds query"):
        train_adapters(make_encoder(), ["query"], rank=3)

"""The part of the contract that is about training; skipped for backends without linear layers.

Shapes: B sequences in a batch, E the embedding's dimension, I inputs and O outputs of a linear
layer, R the rank of an adapter, G numbers of all gradients.
"""

# ruff: noqa: D102  a test's name says what it checks

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from virnucpro.backend.changes import Change, LowRank
from virnucpro.backend.interface import Backend, Collator, Encoder, TrainableBackend, Weights
from virnucpro.backend.testing.steps import (
    CPU,
    collate,
    embed,
    load_encoder,
    load_encoder_or_skip,
    max_difference,
    needs_gpu,
)
from virnucpro.errors import WeightsError


class TrainableContract:
    """Tests that a backend must pass which can be fine-tuned.

    Attributes:
        tolerance: Maximum difference between two float32 results that should be equal, relative to
            the largest number in them.
        slope_tolerance: Maximum difference between a gradient and the slope that two embeddings in
            float32 show, relative to the gradient.
        half_gradient_cosine: Minimum cosine between gradients in half precision and in float32.
    """

    tolerance: float = 2e-5
    slope_tolerance: float = 0.02
    half_gradient_cosine: float = 0.95

    def make_sequences(self) -> list[str]:
        """Return typical sequences of several lengths."""
        raise NotImplementedError

    @pytest.fixture
    def trainable(self, backend: Backend) -> TrainableBackend:
        """Return the backend under test, if it can be fine-tuned."""
        if not backend.info.linear_layers:
            pytest.skip("states no linear layers, so it cannot be fine-tuned")
        return cast(TrainableBackend, backend)

    def test_a_trainable_model_is_the_encoder(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator, encoder: Encoder
    ) -> None:
        model = _load(trainable, weights)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        # With `auto`, an encoder may store its weights otherwise.
        plain = cast(nn.Module, load_encoder_or_skip(trainable, weights, attention="eager"))
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        names = {name for name, _ in plain.named_parameters()}
        # Parts without use for an embedding may be missing: they would have no gradient.
        assert shapes.keys() <= names
        assert all(plain.get_parameter(name).shape == shapes[name] for name in shapes)
        batch = collate(collator, self.make_sequences())
        embedding_BE = model.eval()(batch)
        assert embedding_BE.dtype == torch.float32
        assert max_difference(embedding_BE, embed(encoder, batch)) < self.tolerance
        assert torch.equal(model.train()(batch), embedding_BE), "there is dropout"

    def test_gradients_are_the_slopes_of_the_embeddings(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator
    ) -> None:
        model = _load(trainable, weights)
        sequences = self.make_sequences()[:4]
        gradients = _find_gradients(model, collator, sequences)
        kinds: dict[str, list[str]] = defaultdict(list)
        for name in gradients:
            kinds[".".join(name.split(".")[-2:])].append(name)
        for kind, names in kinds.items():
            size = math.sqrt(sum(float(gradients[name].square().sum()) for name in names))
            assert size > 0, f"{kind} has no gradient"
            # Downhill and uphill along the gradient, so far that float32 shows the difference.
            losses = []
            for step in (-0.003, 0.003):
                for name in names:
                    model.get_parameter(name).data.add_(gradients[name], alpha=step / size)
                losses.append(_make_loss(model, collator, sequences).item())
                for name in names:
                    model.get_parameter(name).data.sub_(gradients[name], alpha=step / size)
            slope = (losses[1] - losses[0]) / 0.006
            rounding = 1e-6 * sum(map(abs, losses)) / 0.006
            wanted = pytest.approx(size, rel=self.slope_tolerance, abs=rounding)
            assert slope == wanted, kind

    def test_gradients_do_not_depend_on_neighbours(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator
    ) -> None:
        model = _load(trainable, weights)
        sequences = self.make_sequences()
        together_G = _flatten(_find_gradients(model, collator, sequences))
        alone_G = torch.zeros_like(together_G)
        for row in range(len(sequences)):
            alone_G += _flatten(_find_gradients(model, collator, sequences[row : row + 1], row))
        assert max_difference(together_G, alone_G) < self.tolerance

    def test_gradient_checkpointing_changes_no_gradient(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator
    ) -> None:
        sequences = self.make_sequences()
        kept, again = (
            _flatten(
                _find_gradients(_load(trainable, weights, checkpointing=on), collator, sequences)
            )
            for on in (False, True)
        )
        assert max_difference(again, kept) < self.tolerance

    def test_adapters_are_merged_into_the_encoder(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator, encoder: Encoder
    ) -> None:
        model = _load(trainable, weights)
        batch = collate(collator, self.make_sequences())
        changes: dict[str, Change] = {}
        for name, linear in list(model.named_modules()):
            if isinstance(linear, nn.Linear) and _kind(name) in trainable.info.linear_layers:
                adapted = _Adapted(linear, seed=len(changes))
                model.set_submodule(name, adapted)
                changes[f"{name}.weight"] = adapted.change
        found_kinds = {_kind(name.removesuffix(".weight")) for name in changes}
        assert found_kinds, "the model has no linear layer of the stated kinds"
        embedding_BE = model(batch)
        assert max_difference(embedding_BE, embed(encoder, batch)) > 100 * self.tolerance
        merged = load_encoder(trainable, weights, changes=changes)
        assert max_difference(embed(merged, batch), embedding_BE) < self.tolerance
        merged_eager = load_encoder_or_skip(trainable, weights, attention="eager", changes=changes)
        assert max_difference(embed(merged_eager, batch), embedding_BE) < self.tolerance

    def test_whole_parameters_are_replaced(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator, encoder: Encoder
    ) -> None:
        model = _load(trainable, weights)
        changes: dict[str, Change] = {}
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.data += 0.01 * noise
            changes[name] = parameter.detach()
        batch = collate(collator, self.make_sequences())
        embedding_BE = model(batch)
        merged_BE = embed(load_encoder(trainable, weights, changes=changes), batch)
        assert max_difference(merged_BE, embedding_BE) < self.tolerance
        assert max_difference(merged_BE, embed(encoder, batch)) > 10 * self.tolerance

    def test_changes_that_do_not_fit_are_refused(
        self, trainable: TrainableBackend, weights: Weights
    ) -> None:
        name, parameter = next(iter(_load(trainable, weights).named_parameters()))
        with pytest.raises(WeightsError, match=r"no\.such\.weight"):
            load_encoder(trainable, weights, changes={"no.such.weight": parameter})
        wide = torch.zeros(*parameter.shape[:-1], parameter.shape[-1] + 1)
        with pytest.raises(WeightsError, match=name):
            load_encoder(trainable, weights, changes={name: wide})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gradients_under_autocast(
        self, trainable: TrainableBackend, weights: Weights, collator: Collator, dtype: torch.dtype
    ) -> None:
        self._compare_half_gradients(trainable, weights, collator, CPU, dtype, is_cast=True)

    @needs_gpu
    @pytest.mark.parametrize("is_cast", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gradients_on_a_gpu(
        self,
        trainable: TrainableBackend,
        weights: Weights,
        collator: Collator,
        dtype: torch.dtype,
        is_cast: bool,
    ) -> None:
        cuda = torch.device("cuda")
        self._compare_half_gradients(trainable, weights, collator, cuda, dtype, is_cast=is_cast)

    def _compare_half_gradients(
        self,
        trainable: TrainableBackend,
        weights: Weights,
        collator: Collator,
        device: torch.device,
        dtype: torch.dtype,
        *,
        is_cast: bool,
    ) -> None:
        sequences = self.make_sequences()
        wanted_G = _flatten(_find_gradients(_load(trainable, weights), collator, sequences))
        for checkpointing in (False, True):
            model = _load(trainable, weights, dtype, device, checkpointing=checkpointing)
            assert {parameter.dtype for parameter in model.parameters()} == {dtype}
            with torch.autocast(device.type, torch.bfloat16, enabled=is_cast):
                loss = _make_loss(model.requires_grad_(True), collator, sequences)
            found_G = _flatten(_backpropagate(model, loss)).cpu()
            assert cosine_similarity(found_G, wanted_G, dim=0) > self.half_gradient_cosine


class _Adapted(nn.Module):
    """A linear layer with an adapter beside it, as the training program inserts them."""

    def __init__(self, linear: nn.Linear, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        down_RI = torch.randn(2, linear.in_features, generator=generator)
        up_OR = torch.randn(linear.out_features, 2, generator=generator)
        self.linear = linear
        self.change = LowRank(down_RI, up_OR * (0.1 / math.sqrt(linear.in_features)))

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.linear(x) + x @ self.change.down_RI.T @ self.change.up_OR.T
        return summed


def _load(
    trainable: TrainableBackend,
    weights: Weights,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    *,
    checkpointing: bool = False,
) -> nn.Module:
    return trainable.load_trainable(
        weights, dtype=dtype, device=device, gradient_checkpointing=checkpointing
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _make_loss(
    model: nn.Module, collator: Collator, sequences: Sequence[str], first_row: int = 0
) -> Tensor:
    """Return a sum in which every number of every embedding has a weight of its own."""
    device = next(model.parameters()).device
    embedding_BE = model(send_to_device(collate(collator, sequences), device))
    # Of like size for all sequences, whatever the size of the embedding.
    rows_B1 = torch.arange(first_row, first_row + len(sequences), device=device)[:, None]
    columns_E = torch.arange(embedding_BE.shape[1], device=device)
    loss: Tensor = (embedding_BE * torch.sin(1 + 3 * rows_B1 + 5 * columns_E)).sum()
    return loss


def _find_gradients(
    model: nn.Module, collator: Collator, sequences: Sequence[str], first_row: int = 0
) -> dict[str, Tensor]:
    model.requires_grad_(True)
    return _backpropagate(model, _make_loss(model, collator, sequences, first_row))


def _backpropagate(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    # Fails where a parameter has no part in the loss.
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def _flatten(gradients: dict[str, Tensor]) -> Tensor:
    """Return float32 (G,): all gradients, one after the other."""
    return torch.cat([gradient.float().flatten() for gradient in gradients.values()])

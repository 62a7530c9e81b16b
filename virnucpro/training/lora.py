"""Low-rank adapters of an encoder's linear layers, and all that a fine-tuning changes of it.

An adapter adds `up @ down` to the matrix of a frozen layer (Hu et al. 2021, LoRA,
arXiv:2106.09685). After the training it is merged into the matrix, so a prediction does not pay for
it.

Shapes: X stands for the leading dimensions, I inputs of a layer, O outputs, R the rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from virnucpro.backend.changes import Change, Changes, LowRank
from virnucpro.errors import UsageError

SCALE = 2.0
"""By what an adapter's product is multiplied: the usual choice, an alpha of twice the rank."""


class AdaptedLinear(nn.Module):
    """A frozen linear layer and its adapter, which adds nothing at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        # float32, whatever the frozen weights are: steps are too small for half precision.
        self.down_RI = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        # Drawn on the CPU, so that every kind of device begins with the same numbers.
        drawn_RI = nn.init.kaiming_uniform_(torch.empty(self.down_RI.shape), a=math.sqrt(5))
        self.down_RI.data.copy_(drawn_RI)

    def forward(self, x_XI: Tensor) -> Tensor:
        """Return the layer's output (X, O)."""
        # Computed as the layer is: norms of half precision stay so, and nothing is cast in between.
        down_RI, up_OR = self.down_RI.to(x_XI.dtype), self.up_OR.to(x_XI.dtype)
        added_XO = nn.functional.linear(nn.functional.linear(x_XI, down_RI), up_OR)
        output_XO: Tensor = self.base(x_XI) + SCALE * added_XO
        return output_XO


def train_adapters(encoder: nn.Module, kinds: Collection[str], rank: int) -> None:
    """Freeze an encoder, and give an adapter to each linear layer of these kinds.

    Args:
        encoder: From `load_trainable`.
        kinds: The last parts of the layers' names.
        rank: R.

    Raises:
        UsageError: The encoder has no such layer.
    """
    encoder.requires_grad_(False)
    # A list first, because the loop replaces modules.
    chosen = [
        (name, layer)
        for name, layer in encoder.named_modules()
        if name.rpartition(".")[2] in kinds and isinstance(layer, nn.Linear)
    ]
    if not chosen:
        raise UsageError(
            f"this encoder has no linear layers of the kinds {', '.join(kinds)}; choose others "
            "(--lora-targets), or --finetune-all"
        )
    for name, layer in chosen:
        parent, _, kind = name.rpartition(".")
        setattr(encoder.get_submodule(parent), kind, AdaptedLinear(layer, rank))


def read_changes(encoder: nn.Module) -> Changes:
    """Return what a fine-tuning has changed, in float32 on the CPU: adapters or whole parameters.

    The names are those of the encoder without adapters.
    """
    return dict(_read_changes(encoder))


def _read_changes(encoder: nn.Module) -> Iterator[tuple[str, Change]]:
    adapted = [
        (name, layer) for name, layer in encoder.named_modules() if isinstance(layer, AdaptedLinear)
    ]
    for name, layer in adapted:
        down_RI, up_OR = _copy(layer.down_RI), _copy(SCALE * layer.up_OR)
        yield f"{name}.weight", LowRank(down_RI, up_OR)
    if not adapted:
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad:
                yield name, _copy(parameter)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()

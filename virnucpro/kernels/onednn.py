"""Matrix products on CPUs through oneDNN: packed weights, and GELU in the same pass.

oneDNN stores ("packs") weights in a layout of its own, which is faster. These operators are meant
for torch's compiler and are not documented, so `can_pack` tries them and compares the results.

Shapes: X stands for the leading dimensions, D width of the hidden states, F width of the
feed-forward. In attention, B sequences of one length L, H heads, K numbers in a head.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from virnucpro.kernels import plain

if TYPE_CHECKING:
    from virnucpro.backend.interface import Attention

logger = logging.getLogger(__name__)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether this module works: on a CPU where oneDNN multiplies `dtype` correctly."""
    if device.type != "cpu":
        return False
    # Not random: that would change the random numbers that the caller draws next.
    # Different numbers in every place, so that a product with swapped or missing parts is noticed.
    rows = (torch.linspace(-9, 9, 16 * 36).sin() / 3).to(dtype).view(36, 16)
    x_XD, bias, weight = rows[:3], rows[3], rows[4:]
    try:
        gelu_XF = linear_gelu(PackedLinear(weight[:16], bias), x_XD)
        found = linear_geglu(PackedGated(weight), gelu_XF)
    # Operators and processors fail in many ways.
    except Exception as error:
        logger.debug("oneDNN does not multiply %s here (%s)", dtype, error)
        return False
    gelu_XF = functional.gelu(functional.linear(x_XD, weight[:16], bias))
    wanted = plain.geglu(functional.linear(gelu_XF, weight))
    # Rounding to half precision changes a number by less than this; a wrong layout changes it by
    # more.
    is_right = torch.allclose(found, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
    if not is_right:
        logger.warning("oneDNN multiplies %s wrongly here, so torch's products are used", dtype)
    return is_right


class Packable(Protocol):
    """A model that can multiply through oneDNN."""

    def pack(self) -> None:
        """Pack the weights as they are now, and multiply through oneDNN from now on."""


def pack_where_it_pays(
    model: Packable, attention: Attention, dtype: torch.dtype, device: torch.device
) -> None:
    """Pack the model if oneDNN works here and the user did not choose an attention."""
    if attention == "auto" and can_pack(dtype, device):
        model.pack()


class PackedLinear(nn.Module):
    """A linear layer with packed weights, for inference only."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight))
        self.register_buffer("bias", bias)

    def forward(self, x_XD: Tensor) -> Tensor:
        """Return the linear layer's output, with the same leading dimensions."""
        return _multiply(self, x_XD, "none")


class PackedGated(nn.Module):
    """A linear layer without bias that makes the gates of a GEGLU, and then its values."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gate, self.value = (PackedLinear(half, None) for half in weight.chunk(2))


def pack_linears(layer: nn.Module) -> None:
    """Replace the linear layers directly in `layer`, except those that are packed already."""
    # A list, because `setattr` changes the children while the loop goes through them.
    for name, linear in list(layer.named_children()):
        if isinstance(linear, nn.Linear):
            setattr(layer, name, PackedLinear(linear.weight, linear.bias))


def add_norm(
    hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """Return the sum (X, D) and its layer norm (X, D); the sum overwrites `delta_XD`."""
    sum_XD = hidden_XD if delta_XD is None else delta_XD.add_(hidden_XD)
    return sum_XD, norm(sum_XD)


def norm_sum(hidden_XD: Tensor, delta_XD: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the layer norm (X, D) of the sum, which overwrites `delta_XD`."""
    return add_norm(hidden_XD, delta_XD, norm)[1]


def linear_gelu(linear: PackedLinear, x_XD: Tensor) -> Tensor:
    """Return the exact GELU of a linear layer (X, F)."""
    return _multiply(linear, x_XD, "gelu")


def linear_geglu(linear: PackedGated, x_XD: Tensor) -> Tensor:
    """Return the exact GELU of the gates times the values, (X, F)."""
    # The end of the second product multiplies by the gate, which saves a pass over the memory.
    multiply = torch.ops.mkldnn._linear_pointwise.binary
    gelu_XF = linear_gelu(linear.gate, x_XD)
    return cast(Tensor, multiply(x_XD, gelu_XF, linear.value.weight, None, "mul"))


def attend(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax attention (B, H, L, K), for half precision.

    In half precision, torch's own attention multiplies in small pieces, which is slower.
    """
    # The scale goes into the queries, because they have fewer numbers than the scores.
    scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.transpose(-1, -2)
    if bias is not None:
        scores_BHLL += bias
    attended_BHLK: Tensor = scores_BHLL.softmax(-1) @ v_BHLK
    return attended_BHLK


def _multiply(linear: PackedLinear, x_XD: Tensor, then: str) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    return cast(Tensor, multiply(x_XD, linear.weight, linear.bias, then, [], "none"))

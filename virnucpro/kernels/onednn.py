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
from virnucpro.kernels.plain import add_norm as add_norm
from virnucpro.kernels.plain import norm_sum as norm_sum

if TYPE_CHECKING:
    from virnucpro.backend.interface import Attention

logger = logging.getLogger(__name__)

ROW_MULTIPLE = 64
"""Batches should have a multiple of so many tokens.

oneDNN generates code for each new shape of a product. In bf16 this takes 4 ms, longer than a small
model's product itself. So batches should come in few sizes.
"""

# More scores do not stay in the cache, and the softmax goes through them less often.
_MAX_UNSHIFTED = 1 << 21

_MIN_SUM, _MAX_SUM = 1e-25, 1e30


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether this module works: on a CPU where oneDNN multiplies `dtype` correctly."""
    if device.type != "cpu":
        return False
    # Not random: that would change the random numbers that the caller draws next.
    # Different numbers in every place, so that a product with swapped or missing parts is noticed.
    rows = (torch.linspace(-9, 9, 16 * 36).sin() / 3).to(dtype).view(36, 16)
    x_XD, bias, weight = rows[:3], rows[3], rows[4:]
    try:
        packed = PackedLinear(weight[:16], bias)
        sum_XD, _ = linear_add(packed, linear_gelu(packed, x_XD), x_XD)
        found = linear_geglu(PackedGated(weight), sum_XD)
    # Operators and processors fail in many ways.
    except Exception as error:
        logger.debug("oneDNN does not multiply %s here (%s)", dtype, error)
        return False
    gelu_XF = functional.gelu(functional.linear(x_XD, weight[:16], bias))
    sum_XD = x_XD + functional.linear(gelu_XF, weight[:16], bias)
    wanted = plain.geglu(functional.linear(sum_XD, weight))
    # Rounding to half precision changes a number by less than this; a wrong layout, by more.
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


def linear_add(linear: PackedLinear, x_XF: Tensor, hidden_XD: Tensor) -> tuple[Tensor, None]:
    """Return the hidden states plus the output of a linear layer (X, D), and nothing to add."""
    # The end of the product adds: the output is not rounded before, and needs no pass of its own.
    add = torch.ops.mkldnn._linear_pointwise.binary
    return cast(Tensor, add(x_XF, hidden_XD, linear.weight, linear.bias, "add")), None


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
    q_NLK, k_NLK, v_NLK = (x_BHLK.flatten(0, 1) for x_BHLK in (q_BHLK, k_BHLK, v_BHLK))
    # Scaled and added to the bias inside the product, before it is rounded.
    # For 0 times it, nothing of it is read.
    beta, bias = (0, q_NLK.new_empty(1)) if bias is None else (1, bias.flatten(0, 1))
    scores_NLL = torch.baddbmm(bias, q_NLK, k_NLK.mT, beta=beta, alpha=q_NLK.shape[-1] ** -0.5)
    attended_NLK = None
    if _is_better_unshifted(scores_NLL):
        attended_NLK = _attend_unshifted(scores_NLL, v_NLK)
    if attended_NLK is None:
        attended_NLK = scores_NLL.softmax(-1) @ v_NLK
    return attended_NLK.view_as(q_BHLK)


def _is_better_unshifted(scores_NLL: Tensor) -> bool:
    """Return whether `_attend_unshifted` is faster than the softmax of torch.

    torch takes 32 numbers of a row at once, and those that are left at its end one by one. So its
    softmax is slow where these are many, as in short proteins.
    """
    length = scores_NLL.shape[-1]
    return (
        # The range of float16 is too small.
        scores_NLL.dtype == torch.bfloat16
        and length % 32 >= length / 5
        and scores_NLL.numel() <= _MAX_UNSHIFTED
    )


def _attend_unshifted(scores_NLL: Tensor, v_NLK: Tensor) -> Tensor | None:
    """Return softmax(scores) V, or None if the exponentials leave the range of float32.

    The usual softmax first subtracts the largest score of each row.
    """
    weights_NLL = scores_NLL.exp()
    sums_NL1 = weights_NLL.sum(-1, keepdim=True, dtype=torch.float32)
    smallest, largest = sums_NL1.aminmax()
    # Far from the ends of the range, so that no weight that counts is lost. NaN is not within.
    if not (smallest > _MIN_SUM and largest < _MAX_SUM):
        return None
    return (weights_NLL @ v_NLK).div_(sums_NL1)


def _multiply(linear: PackedLinear, x_XD: Tensor, then: str) -> Tensor:
    multiply = torch.ops.mkldnn._linear_pointwise
    return cast(Tensor, multiply(x_XD, linear.weight, linear.bias, then, [], "none"))

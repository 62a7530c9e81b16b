"""Rotary positions: queries and keys are turned by angles that grow with the position.

RoFormer, Su et al. 2021, arXiv:2104.09864.

Shapes: T tokens, H heads, K numbers in a head, R = K / 2 frequencies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from virnucpro.backend.model_settings import DEFAULT_ROPE_THETA


def default_frequencies(head_dim: int, rope_theta: float = DEFAULT_ROPE_THETA) -> Tensor:
    """Return float32 (R,): the rotary frequencies of ESM-2."""
    return 1.0 / rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)


class Rotary(NamedTuple):
    """Cosines and sines of the rotary angles of every token, float32, for both halves of a head.

    The sines of the first half are negative, so that `x * cos + swapped x * sin` rotates x.
    """

    cos_T11K: Tensor
    sin_T11K: Tensor


def make_rotary(cos_TR: Tensor, sin_TR: Tensor) -> Rotary:
    """Return the angles of every token in the form that `rotate` needs."""
    cos_TK, sin_TK = torch.cat((cos_TR, cos_TR), 1), torch.cat((-sin_TR, sin_TR), 1)
    return Rotary(cos_TK[:, None, None], sin_TK[:, None, None])


def rotate(x_T2HK: Tensor, rotary: Rotary) -> Tensor:
    """Return queries and keys rotated by their positions.

    Computes in float32. The operations for CPUs pass over a float32 copy of all numbers. On a GPU
    that takes long unless torch.compile joins them, so there the result is rounded at once.
    """
    if not torch.compiler.is_compiling():
        if x_T2HK.requires_grad:
            return _Rotation.apply(x_T2HK, *rotary)  # type: ignore[no-any-return,no-untyped-call]
        if x_T2HK.device.type == "cuda":
            return _rotate_halves(x_T2HK, *rotary)
    # Rolling by half a head swaps its two halves.
    swapped_T2HK = x_T2HK.roll(x_T2HK.shape[-1] // 2, -1)
    return torch.addcmul(x_T2HK * rotary.cos_T11K, swapped_T2HK, rotary.sin_T11K)


def rotate_block(x_BL2HK: Tensor, cos_LR: Tensor, sin_LR: Tensor) -> Tensor:
    """Return queries and keys (2, B, H, L, K) of sequences of one length, rotated, for CPUs.

    Where they are in half precision, `interleave` has reordered them.
    """
    # In half precision, one copy brings the numbers into float32 and into the order in which
    # attention reads them.
    x_2BHLK = x_BL2HK.permute(2, 0, 3, 1, 4).to(
        torch.float32, memory_format=torch.contiguous_format
    )
    if x_BL2HK.dtype == torch.float32:
        cos_LK, sin_LK = torch.cat((cos_LR, cos_LR), 1), torch.cat((-sin_LR, sin_LR), 1)
        swapped_2BHLK = x_2BHLK.roll(x_2BHLK.shape[-1] // 2, -1)
        return torch.addcmul(x_2BHLK * cos_LK, swapped_2BHLK, sin_LK)
    # A product of complex numbers rotates, in one pass.
    pairs_2BHLR = torch.view_as_complex(x_2BHLK.view(*x_2BHLK.shape[:-1], -1, 2))
    pairs_2BHLR.mul_(torch.complex(cos_LR, sin_LR))
    return x_2BHLK.to(x_BL2HK.dtype)


def interleave(qkv: nn.Linear, head_dim: int) -> None:
    """Reorder what makes queries and keys, so that numbers that rotate together are neighbours.

    Attention stays the same, because queries and keys are reordered alike. But its sums are taken
    in another order, so this is not for float32, whose results do not change.
    """
    num_rows = 2 * qkv.in_features
    order = torch.arange(num_rows).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    for tensor in (qkv.weight, qkv.bias):
        tensor[:num_rows] = tensor[order]


def _rotate_halves(x_T2HK: Tensor, cos_T11K: Tensor, sin_T11K: Tensor) -> Tensor:
    first, second = x_T2HK.chunk(2, -1)
    # Each angle is stored twice with the sines of opposite sign. This way needs the second one.
    cos, sin = cos_T11K.chunk(2, -1)[0], sin_T11K.chunk(2, -1)[1]
    rotated_T2HK = torch.empty_like(x_T2HK)
    rotated_first, rotated_second = rotated_T2HK.chunk(2, -1)
    torch.addcmul(first * cos, second, sin, value=-1, out=rotated_first)
    torch.addcmul(second * cos, first, sin, out=rotated_second)
    return rotated_T2HK


class _Rotation(torch.autograd.Function):
    """The rotation with gradients, which are rotated back; `out=` alone has none."""

    @staticmethod
    def forward(ctx: Any, x_T2HK: Tensor, cos_T11K: Tensor, sin_T11K: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T11K, sin_T11K)
        return _rotate_halves(x_T2HK, cos_T11K, sin_T11K)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_T11K, sin_T11K = ctx.saved_tensors
        return _rotate_halves(grads[0], cos_T11K, -sin_T11K), None, None

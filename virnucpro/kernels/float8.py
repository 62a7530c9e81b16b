"""Matrix products in 8 bits: rows of numbers with a scale each, and a linear layer for them.

The format is E4M3 (Micikevicius et al. 2022, arXiv:2209.05433): 4 bits of exponent, 3 of mantissa.
Each row of activations and of weights is scaled so that its largest number becomes 448.

Shapes: X stands for the leading dimensions, K inputs and N outputs of a linear layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import ScalingType

DTYPE = torch.float8_e4m3fn
MAX_VALUE = 448.0
"""The largest number of the format."""

MAX_ROUNDING = 1 + 2**-4
"""Rounding to 8 bits makes a number larger by at most this factor."""

MIN_ROW_MAX = 1e-12
"""A row with smaller numbers is scaled as if this were its largest: a row of zeros has no scale."""

SIZE_MULTIPLE = 16
"""The matrix products accept only multiples of this as K and N."""


class Rows(NamedTuple):
    """Numbers in 8 bits: the tensor (X, K) that was quantized is about `values_XK * scale_X1`."""

    values_XK: Tensor  # of `DTYPE`
    scale_X1: Tensor  # float32


def quantize(x_XK: Tensor, bound: Tensor | None = None) -> Rows:
    """Return the rows of a tensor in 8 bits, rounded to the nearest.

    Args:
        x_XK: The numbers.
        bound: A scalar that no number exceeds. With it, all rows share one scale, in which `bound`
            becomes 448. Only numbers below 2^-15 of the bound lose digits by that.
    """
    # In float32, because half precision would round the quotient before the 8 bits do.
    x_XK = x_XK.float()
    if bound is None:
        max_X1 = x_XK.abs().amax(-1, keepdim=True).clamp(min=MIN_ROW_MAX)
    else:
        # The product takes only row scales here, so the one scale is repeated for each row.
        max_X1 = bound.expand(*x_XK.shape[:-1], 1).contiguous()
    scale_X1 = max_X1 / MAX_VALUE
    return Rows((x_XK / scale_X1).to(DTYPE), scale_X1)


class Float8Linear(nn.Module):
    """A linear layer that multiplies in 8 bits, sums in more bits, and returns bfloat16."""

    weight: Tensor
    scale_N1: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = quantize(linear.weight)
        self.register_buffer("weight", weight.values_XK)
        self.register_buffer("scale_N1", weight.scale_X1)
        self.register_buffer("bias", linear.bias)

    def forward(self, rows: Rows) -> Tensor:
        """Return (X, N)."""
        return functional.scaled_mm(
            rows.values_XK,
            # cuBLAS wants the second matrix column by column, as the transposed view is.
            self.weight.t(),
            rows.scale_X1,
            ScalingType.RowWise,
            self.scale_N1.t(),
            ScalingType.RowWise,
            bias=self.bias,
            output_dtype=torch.bfloat16,
            # Keeps sums in fewer bits for longer, which makes products 5 % faster on an H100.
            use_fast_accum=True,
        )

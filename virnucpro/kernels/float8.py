"""Matrix products in 8 bits: numbers with a scale for each row, and linear layers that take them.

The format is E4M3 (Micikevicius et al. 2022, arXiv:2209.05433): 4 bits of exponent, 3 of mantissa,
up to 448. Every row of activations and of weights is scaled so that its largest number becomes 448.

Shapes: X stands for the leading dimensions, K numbers go into a linear layer and N come out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import ScalingType

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of the format."""

ROUNDING = 1 + 2**-4
"""Rounding makes a number at most so many times larger."""

SMALLEST_ROW = 1e-12
"""Rows whose numbers are all smaller are scaled as if this were their largest."""

SIZE_MULTIPLE = 16
"""The sizes that the matrix products want are multiples of it."""


class Rows(NamedTuple):
    """Numbers in 8 bits; each row times its scale is what they stand for.

    Attributes:
        values_XK: `DTYPE`.
        scale_X1: float32.
    """

    values_XK: Tensor
    scale_X1: Tensor


def quantize(x_XK: Tensor, bound: Tensor | None = None) -> Rows:
    """Return the rows of a tensor in 8 bits, rounded to the nearest.

    Args:
        x_XK: The numbers.
        bound: A scalar that none of them is larger than. It becomes 448 instead of each row's
            largest. That costs little: numbers below 2^-15 of the bound lose digits, no others.
    """
    x_XK = x_XK.float()
    if bound is None:
        largest_X1 = x_XK.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW)
    else:
        largest_X1 = bound.expand(*x_XK.shape[:-1], 1).contiguous()
    scale_X1 = largest_X1 / LARGEST
    return Rows((x_XK / scale_X1).to(DTYPE), scale_X1)


class Float8Linear(nn.Module):
    """A linear layer that multiplies in 8 bits, sums up wider, and returns bfloat16."""

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
            self.weight.t(),
            rows.scale_X1,
            ScalingType.RowWise,
            self.scale_N1.t(),
            ScalingType.RowWise,
            bias=self.bias,
            output_dtype=torch.bfloat16,
            # Sums are kept in fewer bits for longer: on an H100 products are 5 % quicker.
            use_fast_accum=True,
        )

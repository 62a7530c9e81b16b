"""What `fused` computes, written out in torch: any device, any precision.

Shapes: X stands for the leading dimensions, D is the width, F the width of the feed-forward.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def add_norm(hidden_XD: Tensor, delta_XD: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return the sum and its layer norm."""
    sum_XD = hidden_XD + delta_XD
    return sum_XD, norm(sum_XD)


def norm_sum(hidden_XD: Tensor, delta_XD: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the layer norm of the sum."""
    return add_norm(hidden_XD, delta_XD, norm)[1]


def gelu(x_XF: Tensor) -> Tensor:
    """Return the exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016)."""
    return functional.gelu(x_XF)


def geglu(gate_and_value_XF: Tensor) -> Tensor:
    """Return the GELU of the first half of each row times the second half (Shazeer 2020)."""
    gate_XF, value_XF = gate_and_value_XF.chunk(2, dim=-1)
    return functional.gelu(gate_XF) * value_XF

"""The reference for `fused` and `onednn`, in torch alone: any device, any precision.

Shapes: X stands for the leading dimensions, D width of the hidden states, F width of the
feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from virnucpro.kernels import float8
from virnucpro.kernels.float8 import quantize as quantize


def linear_add(linear: nn.Module, x: Any, hidden_XD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states and the output of a linear layer (X, D each), for `add_norm`."""
    return hidden_XD, linear(x)


def add_norm(
    hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """Return the sum (X, D) and its layer norm (X, D); a `delta_XD` of None adds nothing."""
    sum_XD = hidden_XD if delta_XD is None else hidden_XD + delta_XD
    # Autocast would compute the norm of a copy in float32. The norm does so inside, without a copy.
    if sum_XD.dtype == norm.weight.dtype and torch.is_autocast_enabled(sum_XD.device.type):
        with torch.autocast(sum_XD.device.type, enabled=False):
            return sum_XD, norm(sum_XD)
    return sum_XD, norm(sum_XD)


def add_norm_quantize(
    hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, float8.Rows]:
    """Return the sum (X, D) and its layer norm in 8 bits."""
    sum_XD, normed_XD = add_norm(hidden_XD, delta_XD, norm)
    return sum_XD, quantize(normed_XD)


def norm_sum(hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm) -> Tensor:
    """Return the layer norm (X, D) of the sum."""
    return add_norm(hidden_XD, delta_XD, norm)[1]


def linear_gelu(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """Return the exact GELU (X, F), x * Phi(x) (Hendrycks and Gimpel 2016), of a linear layer."""
    return functional.gelu(linear(x_XD))


def gelu_quantize(x_XF: Tensor) -> float8.Rows:
    """Return the exact GELU in 8 bits."""
    return quantize(functional.gelu(x_XF))


def linear_geglu(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """Return the GELU of the first half of a linear layer's output times the second half."""
    return geglu(linear(x_XD))


def geglu(gate_and_value_XF: Tensor) -> Tensor:
    """Return the GELU of the first half of each row times the second half (Shazeer 2020)."""
    # The gate comes first, as in the weights of DNABERT-S (`gated_layers`).
    gate_XF, value_XF = gate_and_value_XF.chunk(2, dim=-1)
    return functional.gelu(gate_XF) * value_XF

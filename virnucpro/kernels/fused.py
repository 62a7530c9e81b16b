"""Kernels for GPUs: attention of packed sequences, residual with layer norm, GELU, GEGLU, 8 bits.

In Triton, but for one of cuBLAS. Forward only, for half precision on CUDA; all arithmetic but
matrix products is in float32. Sizes that change from batch to batch are no constants of the
kernels, so each is compiled once a model.

Shapes: X stands for the leading dimensions, K is any width, D that of the hidden states, F that of
the feed-forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from virnucpro.kernels import float8
from virnucpro.kernels.fused_attention import LARGEST_FLOAT8, LOG2_E
from virnucpro.kernels.fused_attention import attend as attend
from virnucpro.kernels.fused_attention import attend_quantize as attend_quantize

SMALLEST_ROW = tl.constexpr(float8.SMALLEST_ROW)


@triton.jit
def _scale_of_row(x):
    return tl.maximum(tl.max(tl.abs(x)), SMALLEST_ROW) / LARGEST_FLOAT8


@triton.jit
def _add_norm_kernel(
    hidden_ptr,
    delta_ptr,
    sum_ptr,
    normed_ptr,
    scale_ptr,
    weight_ptr,
    bias_ptr,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add two rows and normalize the sum, in 8 bits if there is room for a scale."""
    col = tl.arange(0, BLOCK)
    mask = col < WIDTH
    index = tl.program_id(0).to(tl.int64) * WIDTH + col
    total = tl.load(hidden_ptr + index, mask, 0.0).to(tl.float32)
    if delta_ptr is not None:
        total += tl.load(delta_ptr + index, mask, 0.0).to(tl.float32)
    if sum_ptr is not None:
        tl.store(sum_ptr + index, total, mask)
    centred = tl.where(mask, total - tl.sum(total) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps)
    weight = tl.load(weight_ptr + col, mask, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask, 0.0).to(tl.float32)
    normed = centred * scale * weight + bias
    if scale_ptr is not None:
        row_scale = _scale_of_row(tl.where(mask, normed, 0.0))
        tl.store(scale_ptr + tl.program_id(0), row_scale)
        normed *= 1.0 / row_scale
    tl.store(normed_ptr + index, normed, mask)


@triton.jit
def _gelu(x):
    """Return x * Phi(x) to within 4e-7 in float32, which is nearer than torch's own.

    The tail Phi(-|x|) is formula 7.1.26 of Abramowitz and Stegun. With a library's erf the
    arithmetic would take longer than the memory does.
    """
    size = tl.abs(x)
    t = 1.0 / (1.0 + 0.23164190 * size)  # 0.3275911 / sqrt(2)
    tail = 0.5 * 1.061405429
    tail = tail * t - 0.5 * 1.453152027
    tail = tail * t + 0.5 * 1.421413741
    tail = tail * t - 0.5 * 0.284496736
    tail = tail * t + 0.5 * 0.254829592
    tail = tail * t * tl.exp2(-0.5 * LOG2_E * x * x)
    return tl.maximum(x, 0.0) - size * tail


@triton.jit
def _tanh_gelu(x):
    """Return x / (1 + exp(-2 u)) = x * (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (x + 0.044715 x^3)."""
    return x / (1.0 + tl.exp2(x * (-2.3022082 - 0.1029432 * x * x)))


@triton.jit
def _geglu_kernel(in_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Write GELU of the first WIDTH numbers of a row, times the next WIDTH."""
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    col = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = col < WIDTH
    in_ptr += row * 2 * WIDTH + col
    gate = _gelu(tl.load(in_ptr, mask, 0.0).to(tl.float32))
    value = tl.load(in_ptr + WIDTH, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + col, gate * value, mask)


@triton.jit
def _quantize_kernel(
    in_ptr, out_ptr, scale_ptr, WIDTH: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    """Write a row, or the tanh form of its GELU, in 8 bits, and its scale."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    x = tl.load(in_ptr + row * WIDTH + col, col < WIDTH, 0.0).to(tl.float32)
    if GELU:
        x = _tanh_gelu(x)
    scale = _scale_of_row(x)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * WIDTH + col, x * (1.0 / scale), col < WIDTH)


def add_norm(
    hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """Return the sum and its layer norm; without `delta_XD`, `hidden_XD` and its layer norm."""
    sum_XD = hidden_XD if delta_XD is None else _empty_like(hidden_XD)
    normed_XD = _empty_like(hidden_XD)
    _add_norm(hidden_XD, delta_XD, norm, sum_XD, normed_XD)
    return sum_XD, normed_XD


def add_norm_quantize(
    hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, float8.Rows]:
    """Return the sum and its layer norm in 8 bits."""
    sum_XD = hidden_XD if delta_XD is None else _empty_like(hidden_XD)
    normed = _empty_rows(hidden_XD)
    _add_norm(hidden_XD, delta_XD, norm, sum_XD, *normed)
    return sum_XD, normed


def norm_sum(hidden_XD: Tensor, delta_XD: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the layer norm of the sum."""
    normed_XD = _empty_like(hidden_XD)
    _add_norm(hidden_XD, delta_XD, norm, None, normed_XD)
    return normed_XD


def _empty_like(x_XK: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(x_XK, dtype=dtype, memory_format=torch.contiguous_format)


def _add_norm(
    hidden_XD: Tensor,
    delta_XD: Tensor | None,
    norm: nn.LayerNorm,
    sum_XD: Tensor | None,
    normed_XD: Tensor,
    scale_X1: Tensor | None = None,
) -> None:
    width = hidden_XD.shape[-1]
    block = triton.next_power_of_2(width)
    _add_norm_kernel[(hidden_XD.numel() // width,)](
        hidden_XD.contiguous(),
        None if delta_XD is None else delta_XD.contiguous(),
        None if delta_XD is None else sum_XD,
        normed_XD,
        scale_X1,
        norm.weight,
        norm.bias,
        norm.eps,
        WIDTH=width,
        BLOCK=block,
        num_warps=max(1, block // 1024),
    )


def linear_gelu(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """Return the GELU of a linear layer, in its tanh form.

    The product's own epilogue computes it, which saves a pass over the largest tensor of a layer
    and knows no other form. It is off by at most 4.8e-4; docs/performance.md has what that does to
    embeddings, which is less than half precision does.
    """
    gelu_XF = torch._addmm_activation(
        linear.bias, x_XD.flatten(0, -2), linear.weight.t(), use_gelu=True
    )
    return gelu_XF.view(*x_XD.shape[:-1], -1)


def linear_geglu(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """Return the GELU of the first half of what a linear layer makes, times the second half."""
    return geglu(linear(x_XD))


def geglu(gate_and_value_XF: Tensor) -> Tensor:
    """Return the GELU of the first half of each row times the second half (Shazeer 2020)."""
    width = gate_and_value_XF.shape[-1] // 2
    out_XF = gate_and_value_XF.new_empty(*gate_and_value_XF.shape[:-1], width)
    block = 1024
    _geglu_kernel[(out_XF.numel() // width * triton.cdiv(width, block),)](
        gate_and_value_XF.contiguous(), out_XF, WIDTH=width, BLOCK=block, num_warps=1
    )
    return out_XF


def quantize(x_XK: Tensor) -> float8.Rows:
    """Return the rows of a tensor in 8 bits, rounded to the nearest."""
    return _quantize(x_XK, gelu=False)


def gelu_quantize(x_XF: Tensor) -> float8.Rows:
    """Return the GELU in its tanh form, as of `linear_gelu`, in 8 bits."""
    return _quantize(x_XF, gelu=True)


def _quantize(x_XK: Tensor, *, gelu: bool) -> float8.Rows:
    rows = _empty_rows(x_XK)
    width = x_XK.shape[-1]
    block = triton.next_power_of_2(width)
    _quantize_kernel[(x_XK.numel() // width,)](
        x_XK.contiguous(),
        *rows,
        WIDTH=width,
        GELU=gelu,
        BLOCK=block,
        num_warps=max(1, block // 2048),
    )
    return rows


def _empty_rows(like_XK: Tensor) -> float8.Rows:
    return float8.Rows(
        _empty_like(like_XK, float8.DTYPE),
        like_XK.new_empty((*like_XK.shape[:-1], 1), dtype=torch.float32),
    )

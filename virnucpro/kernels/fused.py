"""Kernels for NVIDIA GPUs: residual with layer norm, GELU, GEGLU, and quantizing to 8 bits.

Attention has its own module, `fused_attention`. All kernels are in Triton, except a linear layer
with GELU from cuBLAS. They compute forward only, in half precision; everything except matrix
products is computed in float32. Only the model's sizes are constants of a kernel, never those of a
batch: Triton compiles a kernel anew for each value of a constant.

Shapes: X stands for the leading dimensions, D width of the hidden states, F width of the
feed-forward, K any width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from virnucpro.kernels import float8
from virnucpro.kernels.fused_attention import LOG2_E, MAX_FLOAT8
from virnucpro.kernels.fused_attention import attend as attend
from virnucpro.kernels.fused_attention import attend_quantize as attend_quantize
from virnucpro.kernels.plain import linear_add as linear_add

# Triton's functions read a module's global only if it is a constexpr.
MIN_ROW_MAX = tl.constexpr(float8.MIN_ROW_MAX)


@triton.jit
def _scale_of_row(x):
    """Return the scale of a row in 8 bits, as `float8.quantize` does."""
    return tl.maximum(tl.max(tl.abs(x)), MIN_ROW_MAX) / MAX_FLOAT8


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
    """Add two rows and normalize the sum; write it in 8 bits if there is a `scale_ptr`.

    Each program reads one row once, where torch's kernels for the sum and the norm read it twice.
    """
    # Triton's blocks are powers of two: the mask hides what lies beyond the row.
    col = tl.arange(0, BLOCK)
    mask = col < WIDTH
    # int64, because a batch may have more numbers than an int32 counts.
    index = tl.program_id(0).to(tl.int64) * WIDTH + col
    total = tl.load(hidden_ptr + index, mask, 0.0).to(tl.float32)
    if delta_ptr is not None:
        total += tl.load(delta_ptr + index, mask, 0.0).to(tl.float32)
    if sum_ptr is not None:
        tl.store(sum_ptr + index, total, mask)
    # Columns beyond the row must be 0 here, or they would count in the variance.
    centred = tl.where(mask, total - tl.sum(total) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps)
    weight = tl.load(weight_ptr + col, mask, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask, 0.0).to(tl.float32)
    normed = centred * scale * weight + bias
    if scale_ptr is not None:
        row_scale = _scale_of_row(tl.where(mask, normed, 0.0))
        tl.store(scale_ptr + tl.program_id(0), row_scale)
        # One division for a row: a division of every number takes longer than the memory.
        normed *= 1.0 / row_scale
    tl.store(normed_ptr + index, normed, mask)


@triton.jit
def _gelu(x):
    """Return the exact GELU, x * Phi(x), to within 4e-7 in float32: closer than torch's own.

    The tail Phi(-|x|) is formula 7.1.26 of Abramowitz and Stegun. With a library's erf, arithmetic
    would take longer than reading and writing the memory.
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
    """Return x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) * (x + 0.044715 x^3)."""
    # The factors give -2 u / ln 2, because exp2 is faster than exp.
    return x / (1.0 + tl.exp2(x * (-2.3022082 - 0.1029432 * x * x)))


@triton.jit
def _geglu_kernel(in_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Write the GELU of the first WIDTH numbers of a row times the next WIDTH numbers."""
    BLOCKS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    col = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = col < WIDTH
    in_ptr += row * 2 * WIDTH + col
    # In float32: bf16 has 8 bits of mantissa, and the polynomial of the GELU would lose them.
    gate = _gelu(tl.load(in_ptr, mask, 0.0).to(tl.float32))
    value = tl.load(in_ptr + WIDTH, mask, 0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + col, gate * value, mask)


@triton.jit
def _quantize_kernel(
    in_ptr, out_ptr, scale_ptr, WIDTH: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    """Write a row in 8 bits and its scale; with GELU, write the tanh form of its GELU."""
    # A program has a whole row, because the scale needs the largest number of the row.
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
    """Return the sum (X, D) and its layer norm (X, D); a `delta_XD` of None adds nothing."""
    normed_XD = _empty_like(hidden_XD)
    return _add_norm(hidden_XD, delta_XD, norm, normed_XD), normed_XD


def add_norm_quantize(
    hidden_XD: Tensor, delta_XD: Tensor | None, norm: nn.LayerNorm
) -> tuple[Tensor, float8.Rows]:
    """Return the sum (X, D) and its layer norm in 8 bits."""
    normed = _empty_rows(hidden_XD)
    return _add_norm(hidden_XD, delta_XD, norm, *normed), normed


def norm_sum(hidden_XD: Tensor, delta_XD: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return the layer norm (X, D) of the sum."""
    normed_XD = _empty_like(hidden_XD)
    _add_norm(hidden_XD, delta_XD, norm, normed_XD, write_sum=False)
    return normed_XD


def _empty_like(x_XK: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(x_XK, dtype=dtype, memory_format=torch.contiguous_format)


def _add_norm(
    hidden_XD: Tensor,
    delta_XD: Tensor | None,
    norm: nn.LayerNorm,
    normed_XD: Tensor,
    scale_X1: Tensor | None = None,
    *,
    write_sum: bool = True,
) -> Tensor:
    """Fill `normed_XD` and `scale_X1`, and return the sum, which is computed if `write_sum`."""
    # With nothing to add, the sum is the hidden state itself, and need not be written again.
    sum_XD = None if delta_XD is None or not write_sum else _empty_like(hidden_XD)
    width = hidden_XD.shape[-1]
    block = triton.next_power_of_2(width)
    _add_norm_kernel[(hidden_XD.numel() // width,)](
        hidden_XD.contiguous(),
        None if delta_XD is None else delta_XD.contiguous(),
        sum_XD,
        normed_XD,
        scale_X1,
        norm.weight,
        norm.bias,
        norm.eps,
        WIDTH=width,
        BLOCK=block,
        # A warp has 32 threads, so each thread holds up to 32 numbers in registers.
        num_warps=max(1, block // 1024),
    )
    return hidden_XD if sum_XD is None else sum_XD


def linear_gelu(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """Return the GELU (X, F) of a linear layer, in its tanh form.

    cuBLAS computes it at the end of the matrix product, which saves a pass over the largest tensor
    of a layer. cuBLAS has only the tanh form. It differs from the exact GELU by at most 4.8e-4;
    docs/notes/performance.md shows that half precision changes embeddings more.
    """
    # torch has no public function for a product with this end.
    gelu_XF = torch._addmm_activation(
        linear.bias, x_XD.flatten(0, -2), linear.weight.t(), use_gelu=True
    )
    return gelu_XF.view(*x_XD.shape[:-1], -1)


def linear_geglu(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """Return the GELU of the first half of a linear layer's output times the second half."""
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
    """Return the GELU in 8 bits, in the tanh form of `linear_gelu`."""
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
        # A warp has 32 threads, so each thread holds up to 64 numbers in registers.
        num_warps=max(1, block // 2048),
    )
    return rows


def _empty_rows(like_XK: Tensor) -> float8.Rows:
    return float8.Rows(
        _empty_like(like_XK, float8.DTYPE),
        like_XK.new_empty((*like_XK.shape[:-1], 1), dtype=torch.float32),
    )

"""Kernels for GPUs: attention of packed sequences, residual with layer norm, GELU, GEGLU, 8 bits.

In Triton, but for one of cuBLAS. Forward only, for half precision on CUDA; all arithmetic but
matrix products is in float32. Sizes that change from batch to batch are no constants of the
kernels, so each is compiled once a model.

Shapes: B sequences, T tokens of all of them, P positions, D width, F width of the feed-forward,
H heads, K numbers in a head, R = K / 2 rotary frequencies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from virnucpro.kernels import float8

LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST_FLOAT8 = tl.constexpr(float8.LARGEST)
SMALLEST_ROW = tl.constexpr(float8.SMALLEST_ROW)


@triton.jit
def _load_halves(
    start_ptr,
    row,
    length,
    cos_ptr,
    sin_ptr,
    STRIDE: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
):
    """Return the two halves of one head in `row`s of a sequence, rotated if there are angles."""
    col = tl.arange(0, COLS)[None, :]
    mask = (row[:, None] < length) & (col < HALF)
    first_ptr = start_ptr + row[:, None] * STRIDE + col
    first = tl.load(first_ptr, mask, 0.0)
    second = tl.load(first_ptr + HALF, mask, 0.0)
    if cos_ptr is not None:
        angle = row[:, None] * HALF + col
        cos = tl.load(cos_ptr + angle, mask, 0.0)
        sin = tl.load(sin_ptr + angle, mask, 0.0)
        turned = (first * cos - second * sin).to(first.dtype)
        second = (second * cos + first * sin).to(first.dtype)
        first = turned
    return first, second


@triton.jit(do_not_specialize=["num_blocks"])
def _attention_kernel(
    qkv_ptr,
    out_ptr,
    offsets_ptr,
    cos_ptr,
    sin_ptr,
    slopes_ptr,
    num_blocks,
    scale,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend from BLOCK_M queries of one head of one sequence to all of its keys."""
    WIDTH: tl.constexpr = 2 * HALF * HEADS
    program = tl.program_id(0)
    head = program % HEADS
    block = program // HEADS % num_blocks
    sequence = program // HEADS // num_blocks
    start = tl.load(offsets_ptr + sequence)
    length = tl.load(offsets_ptr + sequence + 1) - start
    if block * BLOCK_M >= length:
        return
    query_ptr = qkv_ptr + start.to(tl.int64) * (3 * WIDTH) + head * (2 * HALF)
    key_ptr = query_ptr + WIDTH
    value_ptr = key_ptr + WIDTH
    out_ptr += start.to(tl.int64) * WIDTH + head * (2 * HALF)

    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    query_1, query_2 = _load_halves(query_ptr, row, length, cos_ptr, sin_ptr, 3 * WIDTH, HALF, COLS)
    col = tl.arange(0, 2 * COLS)[None, :]
    highest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out = tl.zeros([BLOCK_M, 2 * COLS], tl.float32)
    for begin in range(0, length, BLOCK_N):
        key_row = begin + tl.arange(0, BLOCK_N)
        key_1, key_2 = _load_halves(
            key_ptr, key_row, length, cos_ptr, sin_ptr, 3 * WIDTH, HALF, COLS
        )
        score = tl.dot(query_1, tl.trans(key_1))
        score = tl.dot(query_2, tl.trans(key_2), score) * scale
        if slopes_ptr is not None:
            distance = tl.abs(row[:, None] - key_row[None, :]).to(tl.float32)
            score -= tl.load(slopes_ptr + head) * LOG2_E * distance
        score = tl.where(key_row[None, :] < length, score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        value_mask = (key_row[:, None] < length) & (col < 2 * HALF)
        value = tl.load(value_ptr + key_row[:, None] * (3 * WIDTH) + col, value_mask, 0.0)
        out = tl.dot(weight.to(value.dtype), value, out * shrink[:, None])
        highest = higher
    out_mask = (row[:, None] < length) & (col < 2 * HALF)
    tl.store(out_ptr + row[:, None] * WIDTH + col, out / total[:, None], out_mask)


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
        normed = normed / row_scale
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
    """Write a row, or its GELU, in 8 bits, and its scale."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    x = tl.load(in_ptr + row * WIDTH + col, col < WIDTH, 0.0).to(tl.float32)
    if GELU:
        x = _gelu(x)
    scale = _scale_of_row(x)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * WIDTH + col, x / scale, col < WIDTH)


def attend(
    qkv_T3HK: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    angles: tuple[Tensor, Tensor] | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """Return (T, H, K): softmax attention within each sequence.

    Args:
        qkv_T3HK: Queries, keys and values of packed sequences; K is even.
        offsets: int32 (B + 1,), where each sequence starts, and T.
        max_length: Tokens of the longest sequence.
        angles: Cosines and sines, float32 (P, R) each with P at least `max_length`, by which
            queries and keys are rotated (RoFormer, arXiv:2104.09864); without them they are not.
        slopes_H: float32; ALiBi (arXiv:2108.12409) to both sides adds -slope * |i - j| to scores.
    """
    num_tokens, _, num_heads, head_dim = qkv_T3HK.shape
    out_THK = qkv_T3HK.new_empty(num_tokens, num_heads, head_dim)
    cos_PR, sin_PR = angles or (None, None)
    block = 64
    num_blocks = triton.cdiv(max_length, block)
    _attention_kernel[(num_heads * num_blocks * (len(offsets) - 1),)](
        qkv_T3HK.contiguous(),
        out_THK,
        offsets,
        cos_PR,
        sin_PR,
        slopes_H,
        num_blocks,
        LOG2_E.value * head_dim**-0.5,
        HEADS=num_heads,
        HALF=head_dim // 2,
        COLS=max(16, triton.next_power_of_2(head_dim // 2)),
        BLOCK_M=block,
        BLOCK_N=block,
        num_warps=4,
        # Angles would take up the shared memory that loading ahead needs.
        num_stages=1 if angles else 3,
    )
    return out_THK


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
    """Return the exact GELU in 8 bits."""
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

"""Attention of packed sequences of any length, rotary or ALiBi: one Triton kernel for GPUs.

It is made for many short sequences, and works as FlashAttention does (arXiv:2205.14135): scores
stay in registers. Only the model's sizes are constants of the kernel, never those of a batch:
Triton compiles a kernel anew for each value of a constant.

Shapes: B sequences in a batch, T tokens of all of them together, P positions, H heads, K numbers in
a head, D = H * K, R = K / 2 rotary frequencies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnucpro.kernels import float8

# exp2 is one instruction of the GPU, and exp is not: scores are multiplied by log2(e) beforehand.
LOG2_E = tl.constexpr(1.4426950408889634)
MAX_FLOAT8 = tl.constexpr(float8.MAX_VALUE)


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
    """Return the two halves of one head in these `row`s of a sequence, rotated if there are angles.

    The halves are apart because rotation mixes number i of the first with number i of the second.
    Rows after the last repeat the last, because masking them would take longer.
    """
    # int64, because one long sequence has more numbers than an int32 counts.
    row = tl.minimum(row, length - 1).to(tl.int64)[:, None]
    col = tl.arange(0, COLS)[None, :]
    mask = col < HALF
    first_ptr = start_ptr + row * STRIDE + col
    first = tl.load(first_ptr, mask, 0.0)
    second = tl.load(first_ptr + HALF, mask, 0.0)
    if cos_ptr is not None:
        angle = row * HALF + col
        cos = tl.load(cos_ptr + angle, mask, 0.0)
        sin = tl.load(sin_ptr + angle, mask, 0.0)
        # The angles are float32, so the rotation is too. It is rounded back, because products are
        # in half precision.
        turned = (first * cos - second * sin).to(first.dtype)
        second = (second * cos + first * sin).to(first.dtype)
        first = turned
    return first, second


@triton.jit
def _sum_values(
    query_ptr,
    row,
    length,
    cos_ptr,
    sin_ptr,
    slopes_ptr,
    head,
    scale,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the sums of all values times their weights, and the sums of weights, of these `row`s.

    The caller divides the first by the second. Triton inlines this function into the kernel.
    """
    # All heads of a token lie side by side, so WIDTH leads from queries to keys to values.
    key_ptr = query_ptr + WIDTH
    value_ptr = key_ptr + WIDTH
    query_1, query_2 = _load_halves(query_ptr, row, length, cos_ptr, sin_ptr, 3 * WIDTH, HALF, COLS)
    col = tl.arange(0, 2 * COLS)[None, :]
    # A softmax over keys that arrive in blocks: earlier sums shrink when a higher score comes.
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    out = tl.zeros([BLOCK, 2 * COLS], tl.float32)
    for begin in range(0, length, BLOCK):
        key_row = begin + tl.arange(0, BLOCK)
        # Values are needed last. They are loaded first, so that they arrive during the rest.
        value_row = tl.minimum(key_row, length - 1).to(tl.int64)[:, None]
        value = tl.load(value_ptr + value_row * (3 * WIDTH) + col, col < 2 * HALF, 0.0)
        key_1, key_2 = _load_halves(
            key_ptr, key_row, length, cos_ptr, sin_ptr, 3 * WIDTH, HALF, COLS
        )
        score = tl.dot(query_1, tl.trans(key_1))
        score = tl.dot(query_2, tl.trans(key_2), score) * scale
        if slopes_ptr is not None:
            distance = tl.abs(row[:, None] - key_row[None, :]).to(tl.float32)
            score -= tl.load(slopes_ptr + head) * LOG2_E * distance
        # These keys repeat the last key. Minus infinity gives them a weight of exactly zero.
        score = tl.where(key_row[None, :] < length, score, -float("inf"))
        # Every block has a real key, so this is never minus infinity, and no NaN can arise.
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        out = tl.dot(weight.to(value.dtype), value, out * shrink[:, None])
        highest = higher
    return out, total


@triton.jit(do_not_specialize=["num_blocks"])
def _attention_kernel(
    qkv_ptr,
    out_ptr,
    offsets_ptr,
    cos_ptr,
    sin_ptr,
    slopes_ptr,
    bound_ptr,
    row_scale_ptr,
    num_blocks,
    scale,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attend from BLOCK queries of one head of one sequence to all of its keys.

    Writes 8 bits if there is a `bound_ptr`: all rows get their scale from that bound of the values.
    """
    WIDTH: tl.constexpr = 2 * HALF * HEADS
    # Heads vary fastest: programs that run at the same time then read neighbouring memory.
    program = tl.program_id(0)
    head = program % HEADS
    block = program // HEADS % num_blocks
    sequence = program // HEADS // num_blocks
    start = tl.load(offsets_ptr + sequence)
    length = tl.load(offsets_ptr + sequence + 1) - start
    # The grid is made for the longest sequence, so short ones have programs without queries.
    if block * BLOCK >= length:
        return
    # int64, because queries, keys and values of a large batch are more than an int32 counts.
    query_ptr = qkv_ptr + start.to(tl.int64) * (3 * WIDTH) + head * (2 * HALF)
    out_ptr += start.to(tl.int64) * WIDTH + head * (2 * HALF)

    row = block * BLOCK + tl.arange(0, BLOCK)
    out, total = _sum_values(
        query_ptr, row, length, cos_ptr, sin_ptr, slopes_ptr, head, scale, WIDTH, HALF, COLS, BLOCK
    )
    col = tl.arange(0, 2 * COLS)[None, :]
    if bound_ptr is not None:
        row_scale = tl.load(bound_ptr) / MAX_FLOAT8
        # All heads share the scale, so one of them writes it.
        tl.store(row_scale_ptr + start + row, row_scale, (row < length) & (head == 0))
        # Dividing by the scale belongs to quantizing. It costs nothing here, because the next line
        # divides anyway.
        total *= row_scale
    # One division for a row and then products: a division takes many times as long as a product.
    out *= (1.0 / total)[:, None]
    out_mask = (row[:, None] < length) & (col < 2 * HALF)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * WIDTH + col, out, out_mask)


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
        offsets: int32 (B + 1,): where each sequence starts, and T.
        max_length: Tokens of the longest sequence.
        angles: Cosines and sines, float32 (P, R) each, which rotate queries and keys (RoFormer,
            arXiv:2104.09864). P is at least `max_length`. None rotates nothing.
        slopes_H: float32; ALiBi (arXiv:2108.12409) in both directions adds -slope * |i - j| to the
            scores. None adds nothing.
    """
    num_tokens, _, num_heads, head_dim = qkv_T3HK.shape
    out_THK = qkv_T3HK.new_empty(num_tokens, num_heads, head_dim)
    _attend(qkv_T3HK, offsets, max_length, out_THK, angles=angles, slopes_H=slopes_H)
    return out_THK


def attend_quantize(
    qkv_T3HK: Tensor,
    offsets: Tensor,
    max_length: int,
    bound: Tensor,
    *,
    angles: tuple[Tensor, Tensor],
) -> float8.Rows:
    """Return what `attend` returns as (T, D) in 8 bits, as `float8.quantize` with `bound` does.

    `bound` is at least the largest value. Attention is a mean of values, so it has the same bound.
    """
    num_tokens, _, num_heads, head_dim = qkv_T3HK.shape
    rows = float8.Rows(
        qkv_T3HK.new_empty((num_tokens, num_heads * head_dim), dtype=float8.DTYPE),
        qkv_T3HK.new_empty((num_tokens, 1), dtype=torch.float32),
    )
    _attend(qkv_T3HK, offsets, max_length, rows.values_XK, bound, rows.scale_X1, angles=angles)
    return rows


def _attend(
    qkv_T3HK: Tensor,
    offsets: Tensor,
    max_length: int,
    out_TD: Tensor,
    bound: Tensor | None = None,
    row_scale_T1: Tensor | None = None,
    *,
    angles: tuple[Tensor, Tensor] | None,
    slopes_H: Tensor | None = None,
) -> None:
    num_heads, head_dim = qkv_T3HK.shape[2:]
    cos_PR, sin_PR = angles or (None, None)
    # On an H200, 128 queries, or 32 or 128 keys, took longer (docs/notes/performance.md).
    block = 64
    num_blocks = triton.cdiv(max_length, block)
    # One dimension of the grid, because the other two dimensions of CUDA end at 65,535.
    _attention_kernel[(num_heads * num_blocks * (len(offsets) - 1),)](
        qkv_T3HK.contiguous(),
        out_TD,
        offsets,
        cos_PR,
        sin_PR,
        slopes_H,
        bound,
        row_scale_T1,
        num_blocks,
        LOG2_E.value * head_dim**-0.5,
        HEADS=num_heads,
        HALF=head_dim // 2,
        # A product in Triton needs at least 16 columns, and blocks are powers of two.
        COLS=max(16, triton.next_power_of_2(head_dim // 2)),
        BLOCK=block,
        num_warps=4,
        # With angles there is too little shared memory to load blocks ahead in several stages.
        num_stages=1 if angles else 3,
    )

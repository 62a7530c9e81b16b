"""ESM-2's attention over packed sequences, by torch, flash-attn and oneDNN.

Shapes: B sequences in a batch, T tokens of all of them together, L tokens of one sequence, H heads,
K numbers in a head.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from virnucpro.kernels import flash, onednn
from virnucpro.kernels.flash import is_half_on_gpu
from virnucpro_esm2.rotary import rotate_block


class Packing(NamedTuple):
    """Where the sequences of a batch lie among its T tokens.

    Attributes:
        lengths_B: int64, tokens of each sequence.
        offsets: int32 (B + 1,): where each sequence starts, and T.
        max_length: The largest of `lengths_B`, on the host.
    """

    lengths_B: Tensor
    offsets: Tensor
    max_length: int


Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]
"""From queries, keys and values (T, H, K each) of packed sequences to attended values (T, H, K)."""


def _attend_by_length(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths_B: Tensor, kind: str
) -> Tensor:
    """Return attention, computed for one run of sequences of equal length after the other.

    So there is no padding, and no sequence can touch another. Batches are sorted by length, so runs
    are long. On CUDA the CPU waits here for the lengths.
    """
    attend_BHLK = _ATTEND_BHLK[kind]
    # Neighbours of equal length are one dense block, which needs neither padding nor a mask.
    runs = [(length, sum(run)) for length, run in groupby(lengths_B.tolist())]
    sizes = [size for _, size in runs]
    pieces = zip(*(torch.split(x, sizes) for x in (q_THK, k_THK, v_THK)), strict=True)
    attended = []
    for (length, _), piece in zip(runs, pieces, strict=True):
        q_BHLK, k_BHLK, v_BHLK = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in piece)
        attended.append(attend_BHLK(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(0, 1))
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _eager_attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) V written out, the softmax in float32."""
    scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.transpose(-1, -2)
    weights_BHLL: Tensor = scores_BHLL.softmax(-1, dtype=torch.float32).to(v_BHLK.dtype)
    return weights_BHLL @ v_BHLK


_ATTEND_BHLK: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eager": _eager_attention,
    "sdpa": F.scaled_dot_product_attention,
}

# torch.compile does not look into an operator of its own. If it did, it would compile anew for the
# lengths of every batch.
_by_length_op = torch.library.custom_op(
    "virnucpro_esm2::attend_by_length",
    _attend_by_length,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor lengths, str kind) -> Tensor",
)
# The compiler needs the shape of the result without running the operator.
_by_length_op.register_fake(lambda q_THK, *_: q_THK.new_empty(q_THK.shape))


def by_length(kind: str) -> Attend:
    """Return packed attention that runs everywhere: `eager`, torch's `sdpa`, or `onednn`."""

    def attend(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
        # Outside of torch.compile a plain call: calling the operator imports torch's compiler.
        call = _by_length_op if torch.compiler.is_compiling() else _attend_by_length
        return call(q_THK, k_THK, v_THK, packing.lengths_B, kind)

    return attend


attend_eager = by_length("eager")
attend_sdpa = by_length("sdpa")


def attend_packed(qkv_T3HK: Tensor, lengths: list[int], cos_PR: Tensor, sin_PR: Tensor) -> Tensor:
    """Return the attended values (T, D) of a model whose weights are packed, on a CPU.

    Args:
        qkv_T3HK: Queries, keys and values, not yet rotated; perhaps more than the sequences have.
        lengths: Tokens of each sequence.
        cos_PR: The cosines of the rotary angles by position.
        sin_PR: Their sines.
    """
    # In float32, torch's own attention is faster.
    is_half = qkv_T3HK.dtype != torch.float32
    attend = onednn.attend if is_half else F.scaled_dot_product_attention
    # Zeros for the tokens behind the last sequence.
    attended_THK = torch.zeros_like(qkv_T3HK[:, 0], memory_format=torch.contiguous_format)
    start = 0
    for length, run in groupby(lengths):
        stop = start + length * sum(1 for _ in run)
        qkv_BL3HK = qkv_T3HK[start:stop].view(-1, length, *qkv_T3HK.shape[1:])
        q_BHLK, k_BHLK = rotate_block(qkv_BL3HK[:, :, :2], cos_PR[:length], sin_PR[:length])
        attended_BHLK = attend(q_BHLK, k_BHLK, qkv_BL3HK[:, :, 2].transpose(1, 2))
        attended_THK[start:stop].view_as(qkv_BL3HK[:, :, 2]).copy_(attended_BHLK.transpose(1, 2))
        start = stop
    return attended_THK.flatten(1)


def attend_varlen(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
    """Return the attention of the FlashAttention-2 inside torch: CUDA, bf16 or fp16."""
    from torch.nn.attention.varlen import varlen_attn

    # The later arguments changed between torch 2.10 and 2.13; these seven did not.
    offsets, longest = packing.offsets, packing.max_length
    return cast(Tensor, varlen_attn(q_THK, k_THK, v_THK, offsets, offsets, longest, longest))


def attend_flash(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
    """Return the attention of the package flash-attn: CUDA, bf16 or fp16."""
    return flash.attend(q_THK, k_THK, v_THK, packing.offsets, packing.max_length)


def attend_with_gradients(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
    """Return torch's attention for what the queries are in, which autocast may change."""
    attend = choose_attend("sdpa", head_dim=q_THK.shape[-1], dtype=q_THK.dtype, device=q_THK.device)
    return attend(q_THK, k_THK, v_THK, packing)


def choose_attend(
    kernel: str, *, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Attend:
    """Return the attention that `kernel` (`eager`, `sdpa` or `flash`) means on this device."""
    if kernel == "eager":
        return attend_eager
    if kernel == "flash":
        return attend_flash
    has_varlen = (
        is_half_on_gpu(dtype, device)
        # FlashAttention reads rows of 16 bytes, which are 8 numbers in half precision.
        and head_dim % 8 == 0
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    return attend_varlen if has_varlen else attend_sdpa

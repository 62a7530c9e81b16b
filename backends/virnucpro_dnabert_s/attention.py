"""DNABERT-S's attention: ALiBi over padded batches by torch or oneDNN.

On GPUs, `virnucpro.kernels.fused` and `virnucpro.kernels.flash` attend without padding instead.

Shapes: B sequences in a batch, L tokens of the longest one rounded up, Q of them that attend
together, H heads, K numbers in a head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from virnucpro.backend.interface import TokenBatch
from virnucpro.kernels import onednn

AttentionKernel = Literal["fused", "onednn", "eager", "sdpa", "flash"]

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (B, H, L, K each) and a bias (B, H, L, L) to contexts (B, H, L, K).

Queries, bias and contexts may be those of Q tokens only.
"""

# On a GPU this list selects the memory-efficient kernel. Without it, recent torch prefers cuDNN on
# Hopper, which compiles a plan for each new (B, L), and nearly every batch has a new one.
SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# The memory-efficient kernel needs each row of its bias aligned to 16 bytes.
LENGTH_MULTIPLE = 8

# 256 MiB in float32; a bias that is made, and the scores, need some times that.
_MAX_BIAS_NUMBERS = 1 << 26


def padded_index(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return which packed token each padded position reads, and which positions are tokens.

    Padding repeats the last token of its own sequence, so NaN cannot come in from a neighbour.

    Returns:
        int64 (B, L) and bool (B, L).
    """
    # Minus twice rounds up to the multiple.
    length = -(-batch.max_length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    position_L = torch.arange(length, device=batch.lengths_B.device)
    lengths_B1 = batch.lengths_B[:, None]
    starts_B1 = batch.lengths_B.cumsum(0)[:, None] - lengths_B1
    index_BL = starts_B1 + torch.minimum(position_L, lengths_B1 - 1)
    return index_BL, position_L < lengths_B1


def attention_bias(
    is_token_BL: Tensor, num_heads: int, dtype: torch.dtype, queries: slice = slice(None)
) -> Tensor:
    """Return (B, H, Q, L): ALiBi's -slope * |i - j|, and minus infinity for keys of padding."""
    position_L = torch.arange(is_token_BL.shape[1], device=is_token_BL.device)
    distance_QL = (position_L[queries, None] - position_L).abs()
    alibi_HQL = -alibi_slopes(num_heads, is_token_BL.device)[:, None, None] * distance_QL
    padding_BL = torch.zeros_like(is_token_BL, dtype=dtype).masked_fill(~is_token_BL, -math.inf)
    return alibi_HQL.to(dtype) + padding_BL[:, None, None, :]


def attend_padded(
    attend: Attend, is_token_BL: Tensor, num_heads: int, dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the attention of one padded batch: queries, keys and values to contexts.

    The bias is made once for all layers. On a CPU, nothing refuses what memory does not hold, and
    the system kills the process. So long sequences attend there in blocks of Q queries, and each
    layer makes the bias of a block again.
    """
    num_sequences, length = is_token_BL.shape
    num_queries = max(1, _MAX_BIAS_NUMBERS // (num_sequences * num_heads * length))
    if num_queries >= length or is_token_BL.device.type != "cpu":
        bias_BHLL = attention_bias(is_token_BL, num_heads, dtype)
        return lambda q_BHLK, k_BHLK, v_BHLK: attend(q_BHLK, k_BHLK, v_BHLK, bias_BHLL)

    def attend_in_blocks(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
        context_BHLK = torch.empty_like(q_BHLK)
        for start in range(0, length, num_queries):
            queries = slice(start, start + num_queries)
            bias_BHQL = attention_bias(is_token_BL, num_heads, dtype, queries)
            context_BHLK[:, :, queries] = attend(q_BHLK[:, :, queries], k_BHLK, v_BHLK, bias_BHQL)
        return context_BHLK

    return attend_in_blocks


@functools.cache
def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """Return float32 (H,): the slopes of Press et al. 2022, also if H is not a power of two.

    They are cached per device, because copying them for each batch would make the GPU wait. A
    buffer of the model would be rounded to half precision together with the weights.
    """

    def geometric(num: int) -> list[float]:
        return [2.0 ** (-8 * (head + 1) / num) for head in range(num)]

    power = 1 << (num_heads.bit_length() - 1)
    # The published rule for other numbers of heads: every second slope of the next power of two.
    slopes = geometric(power) + geometric(2 * power)[::2]
    return torch.tensor(slopes[:num_heads], device=device)


def choose_attend(kernel: AttentionKernel, dtype: torch.dtype) -> Attend:
    """Return the attention of padded batches that `kernel` means for weights in `dtype`."""
    if kernel == "eager":
        return eager_attention
    # In float32, torch's own attention is faster on CPUs.
    return onednn.attend if kernel == "onednn" and dtype != torch.float32 else _sdpa


def eager_attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, bias_BHLL: Tensor) -> Tensor:
    """Return softmax attention written out: the reference for the other kernels."""
    scores_BHLL = q_BHLK @ k_BHLK.transpose(-1, -2) / math.sqrt(q_BHLK.shape[-1]) + bias_BHLL
    # The softmax in float32, because this is the reference.
    return scores_BHLL.softmax(dim=-1, dtype=torch.float32).to(v_BHLK.dtype) @ v_BHLK


def _sdpa(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, bias_BHLL: Tensor) -> Tensor:
    # The choice is global to the process and means nothing on a CPU, where two threads attend.
    choice = sdpa_kernel(SDPA_BACKENDS) if q_BHLK.device.type == "cuda" else nullcontext()
    with choice:
        return functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=bias_BHLL)

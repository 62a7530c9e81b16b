"""The DNABERT-S network: MosaicBERT with ALiBi attention, and mean pooling.

Written after Portes et al. 2023 (MosaicBERT) and the `bert_layers.py` published with DNABERT-2.

Shapes: B sequences, T tokens of all of them, L tokens of the longest one rounded up, H heads,
D numbers per token, V words. X stands for (B, L) in the padded layout, for (T,) in the packed one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from virnucpro.backend.interface import TokenBatch
from virnucpro.kernels import onednn, plain
from virnucpro.kernels.halves import embed_halves

AttentionKernel = Literal["fused", "onednn", "eager", "sdpa", "flash"]

# On a GPU this means the memory-efficient kernel. Without the list, recent torch prefers cuDNN on
# Hopper, which compiles a plan for every new (B, L), and here nearly every batch has a new one.
SDPA_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

# The memory-efficient kernel wants the rows of its bias aligned to 16 bytes.
LENGTH_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model's sizes, under the names that config.json gives them."""

    vocab_size: int
    type_vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float


class Layer(nn.Module):
    """One post-norm transformer layer: attention, then a gated (GEGLU) feed-forward."""

    gate_and_value: Any

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.gate_and_value = nn.Linear(width, 2 * inner, bias=False)
        self.mlp_out = nn.Linear(inner, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, hidden_XD: Tensor, attend: Callable[[Tensor], Tensor], kernels: ModuleType
    ) -> Tensor:
        """Return the next hidden states; `attend` turns queries, keys, values into contexts."""
        delta_XD = self.attention_out(attend(self.qkv(hidden_XD)))
        hidden_XD = kernels.norm_sum(hidden_XD, delta_XD, self.attention_norm)
        delta_XD = self.mlp_out(kernels.linear_geglu(self.gate_and_value, hidden_XD))
        output_XD: Tensor = kernels.norm_sum(hidden_XD, delta_XD, self.mlp_norm)
        return output_XD

    def pack(self) -> None:
        """Let oneDNN multiply from now on, with the weights as they are."""
        for name in ("qkv", "attention_out", "mlp_out"):
            linear = getattr(self, name)
            setattr(self, name, onednn.PackedLinear(linear.weight, linear.bias))
        self.gate_and_value = onednn.PackedGated(self.gate_and_value.weight)


def _empty_embedding(num: int, width: int) -> nn.Embedding:
    """Return a table to be filled: drawing numbers on the meta device imports torch's compiler."""
    return nn.Embedding(num, width, _weight=torch.empty(num, width))


class DnabertS(nn.Module):
    """DNABERT-S with mean pooling over all tokens; see `virnucpro.backend.interface.Encoder`.

    Holds parameters alone, so it can be built on the meta device and filled later.
    """

    def __init__(self, config: ModelConfig, attention: AttentionKernel = "sdpa") -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attention = attention
        self.word_embeddings = _empty_embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = _empty_embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    @property
    def has_own_kernels(self) -> bool:
        """Whether `torch.compile` would find nothing to fuse."""
        return self.attention in ("fused", "onednn")

    def pack(self) -> None:
        """Let oneDNN multiply from now on, on this CPU, with the weights as they are."""
        self.attention = "onednn"
        for layer in self.layers:
            cast(Layer, layer).pack()

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): each sequence's mean over its last hidden states."""
        if self.attention in ("fused", "flash"):
            return self._embed_packed(batch)
        if self.attention == "onednn":
            return embed_halves(functools.partial(self._embed_padded, onednn), batch)
        return self._embed_padded(plain, batch)

    def _embed_padded(self, kernels: ModuleType, batch: TokenBatch) -> Tensor:
        index_BL, is_token_BL = padded_index(batch)
        attend = self._attend_padded(is_token_BL)
        hidden_BLD = self._hidden_states(batch.token_ids_T[index_BL], attend, kernels)
        hidden_BLD = hidden_BLD.masked_fill(~is_token_BL[..., None], 0)
        return hidden_BLD.sum(dim=1, dtype=torch.float32) / batch.lengths_B[:, None]

    def _embed_packed(self, batch: TokenBatch) -> Tensor:
        offsets = functional.pad(batch.lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
        slopes_H = alibi_slopes(self.num_heads, offsets.device)
        if self.attention == "fused":
            from virnucpro.kernels import fused

            kernels: ModuleType = fused
            attend_qkv = functools.partial(fused.attend, slopes_H=slopes_H)
        else:
            kernels = plain
            attend_qkv = functools.partial(_flash_attention, slopes_H=slopes_H)

        def attend(qkv_TD: Tensor) -> Tensor:
            context_THK = attend_qkv(self._split(qkv_TD), offsets, batch.max_length)
            return context_THK.flatten(1)

        hidden_TD = self._hidden_states(batch.token_ids_T, attend, kernels).float()
        # unsafe skips a check of the lengths that would wait for the GPU.
        return torch.segment_reduce(hidden_TD, "mean", lengths=batch.lengths_B, unsafe=True)

    def _hidden_states(
        self, token_ids_X: Tensor, attend: Callable[[Tensor], Tensor], kernels: ModuleType
    ) -> Tensor:
        words_VD, type_D = self.word_embeddings.weight, self.token_type_embeddings.weight[0]
        if token_ids_X.numel() < len(words_VD):
            hidden_XD: Tensor = self.embedding_norm(words_VD[token_ids_X] + type_D)
        else:
            # A word starts the same wherever it stands: norm the vocabulary, not every token.
            normed_VD = self.embedding_norm(words_VD + type_D)
            hidden_XD = functional.embedding(token_ids_X, normed_VD)
        for layer in self.layers:
            hidden_XD = layer(hidden_XD, attend, kernels)
        return hidden_XD

    def _split(self, qkv_XD: Tensor) -> Tensor:
        return qkv_XD.view(*qkv_XD.shape[:-1], 3, self.num_heads, -1)

    def _attend_padded(self, is_token_BL: Tensor) -> Callable[[Tensor], Tensor]:
        dtype = self.word_embeddings.weight.dtype
        bias_BHLL = attention_bias(is_token_BL, self.num_heads, dtype)
        attention: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = _sdpa
        if self.attention == "eager":
            attention = eager_attention
        elif self.attention == "onednn" and dtype != torch.float32:
            attention = onednn.attend

        def attend(qkv_BLD: Tensor) -> Tensor:
            query, key, value = self._split(qkv_BLD).transpose(1, 3).unbind(2)
            return attention(query, key, value, bias_BHLL).transpose(1, 2).flatten(2)

        return attend


def padded_index(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return where in the packed tokens each padded position reads, and which are tokens.

    Padding repeats the sequence's own last token, so that nothing of a neighbour gets in.

    Returns:
        int64 (B, L) and bool (B, L).
    """
    length = -(-batch.max_length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    position_L = torch.arange(length, device=batch.lengths_B.device)
    lengths_B1 = batch.lengths_B[:, None]
    starts_B1 = batch.lengths_B.cumsum(0)[:, None] - lengths_B1
    index_BL = starts_B1 + torch.minimum(position_L, lengths_B1 - 1)
    return index_BL, position_L < lengths_B1


def attention_bias(is_token_BL: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """Return (B, H, L, L): ALiBi's -slope * |i - j|, and minus infinity for keys of padding."""
    position_L = torch.arange(is_token_BL.shape[1], device=is_token_BL.device)
    distance_LL = (position_L[:, None] - position_L).abs()
    alibi_HLL = -alibi_slopes(num_heads, is_token_BL.device)[:, None, None] * distance_LL
    padding_BL = torch.zeros_like(is_token_BL, dtype=dtype).masked_fill(~is_token_BL, -math.inf)
    return alibi_HLL.to(dtype) + padding_BL[:, None, None, :]


@functools.cache
def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """Return float32 (H,): the slopes of Press et al. 2022, also for H that is no power of two.

    Kept per device: copying them for every batch would stall the GPU, and as a buffer of the model
    they would be rounded with it to half precision.
    """

    def geometric(num: int) -> list[float]:
        return [2.0 ** (-8 * (head + 1) / num) for head in range(num)]

    power = 1 << (num_heads.bit_length() - 1)
    slopes = geometric(power) + geometric(2 * power)[::2]
    return torch.tensor(slopes[:num_heads], device=device)


def eager_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return softmax attention written out: the reference for the other kernels."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    # It sets what all threads of the process go by, and says nothing to CPUs.
    choice = sdpa_kernel(SDPA_BACKENDS) if query.device.type == "cuda" else nullcontext()
    with choice:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _flash_attention(
    qkv_T3HK: Tensor, offsets: Tensor, max_length: int, *, slopes_H: Tensor
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    context_THK: Tensor = flash_attn_varlen_func(
        *qkv_T3HK.unbind(1),
        cu_seqlens_q=offsets,
        cu_seqlens_k=offsets,
        max_seqlen_q=max_length,
        max_seqlen_k=max_length,
        alibi_slopes=slopes_H,
    )
    return context_THK

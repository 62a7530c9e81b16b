"""The DNABERT-S network: MosaicBERT with ALiBi attention, and mean pooling.

Written after Portes et al. 2023 (MosaicBERT) and the `bert_layers.py` published with DNABERT-2.

Shapes: B sequences in a batch, T tokens of all of them together, L tokens of the longest one
rounded up, H heads, K numbers in a head, D width of the hidden states, V words. X stands for
(B, L) in the padded layout and for (T,) in the packed one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.tokens import mean_where
from virnucpro.kernels import flash, onednn, plain
from virnucpro.kernels.halves import embed_halves
from virnucpro.kernels.host_memory import require_memory
from virnucpro_dnabert_s.attention import (
    AttentionKernel,
    alibi_slopes,
    attend_padded,
    choose_attend,
    padded_index,
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model's sizes, under their names in config.json."""

    vocab_size: int
    type_vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float


class Layer(nn.Module):
    """One post-norm transformer layer: attention, then a gated (GEGLU) feed-forward."""

    gate_and_value: Any  # an `nn.Linear`, or an `onednn.PackedGated` after `pack`

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        # The published weights have no bias here.
        self.gate_and_value = nn.Linear(width, 2 * inner, bias=False)
        self.mlp_out = nn.Linear(inner, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, hidden_XD: Tensor, attend: Callable[[Tensor], Tensor], kernels: ModuleType
    ) -> Tensor:
        """Return the next hidden states (X, D).

        Args:
            hidden_XD: The hidden states of the layer before.
            attend: Turns queries, keys and values (X, 3 * D) into contexts (X, D).
            kernels: The module of `virnucpro.kernels` that computes norms and GEGLU.
        """
        context_XD = attend(self.qkv(hidden_XD))
        sums = kernels.linear_add(self.attention_out, context_XD, hidden_XD)
        hidden_XD = kernels.norm_sum(*sums, self.attention_norm)
        inner_XF = kernels.linear_geglu(self.gate_and_value, hidden_XD)
        sums = kernels.linear_add(self.mlp_out, inner_XF, hidden_XD)
        output_XD: Tensor = kernels.norm_sum(*sums, self.mlp_norm)
        return output_XD


def _empty_embedding(num: int, width: int) -> nn.Embedding:
    """Return a table without numbers: drawing them on a meta device imports torch's compiler."""
    return nn.Embedding(num, width, _weight=torch.empty(num, width))


class DnabertS(nn.Module):
    """DNABERT-S with mean pooling over all tokens; see `virnucpro.backend.interface.Encoder`.

    It has parameters but no buffers, so it can be made on the meta device and filled later.
    """

    def __init__(self, config: ModelConfig, attention: AttentionKernel = "sdpa") -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.inner_width = config.intermediate_size
        self.attention = attention
        self.word_embeddings = _empty_embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = _empty_embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    @property
    def has_own_kernels(self) -> bool:
        """Whether `torch.compile` would have nothing left to fuse."""
        return self.attention in ("fused", "onednn")

    def pack(self) -> None:
        """Pack the weights as they are now, and multiply through oneDNN from now on."""
        self.attention = "onednn"
        for layer in cast("list[Layer]", self.layers):
            # First, because `pack_linears` would pack the gates and the values as one matrix.
            layer.gate_and_value = onednn.PackedGated(layer.gate_and_value.weight)
            onednn.pack_linears(layer)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): the mean of each sequence's last hidden states."""
        # Only these two know ALiBi for packed sequences. All others need padded batches.
        if self.attention in ("fused", "flash"):
            return self._embed_packed(batch)
        if self.attention == "onednn":
            return embed_halves(functools.partial(self._embed_padded, onednn), batch)
        return self._embed_padded(plain, batch)

    def _embed_padded(self, kernels: ModuleType, batch: TokenBatch) -> Tensor:
        index_BL, is_token_BL = padded_index(batch)
        dtype = self.word_embeddings.weight.dtype
        if torch.is_autocast_enabled(index_BL.device.type):
            # What products compute in: otherwise every layer would cast the bias.
            dtype = torch.get_autocast_dtype(index_BL.device.type)
        # At the most, the states of a layer, its queries, keys and values, contexts and gates.
        width = 8 * self.word_embeddings.embedding_dim + 3 * self.inner_width
        # Asked before anything is taken: on a CPU the system would kill the process.
        require_memory(index_BL.numel() * width * dtype.itemsize, index_BL.device)
        attend_BHLK = attend_padded(
            choose_attend(self.attention, dtype), is_token_BL, self.num_heads, dtype
        )

        def attend(qkv_BLD: Tensor) -> Tensor:
            q_BHLK, k_BHLK, v_BHLK = self._split(qkv_BLD).transpose(1, 3).unbind(2)
            return attend_BHLK(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(2)

        hidden_BLD = self._hidden_states(batch.token_ids_T[index_BL], attend, kernels)
        return mean_where(hidden_BLD, is_token_BL)

    def _embed_packed(self, batch: TokenBatch) -> Tensor:
        offsets = functional.pad(batch.lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
        slopes_H = alibi_slopes(self.num_heads, offsets.device)
        where = offsets, batch.max_length
        kernels: ModuleType = plain
        if self.attention == "fused":
            from virnucpro.kernels import fused

            kernels = fused

        def attend(qkv_TD: Tensor) -> Tensor:
            qkv_T3HK = self._split(qkv_TD)
            if self.attention == "flash":
                q_THK, k_THK, v_THK = qkv_T3HK.unbind(1)
                context_THK = flash.attend(q_THK, k_THK, v_THK, *where, slopes_H=slopes_H)
            else:
                context_THK = kernels.attend(qkv_T3HK, *where, slopes_H=slopes_H)
            return context_THK.flatten(1)

        hidden_TD = self._hidden_states(batch.token_ids_T, attend, kernels).float()
        # `unsafe` skips a check of the lengths, for which the CPU would wait for the GPU.
        return torch.segment_reduce(hidden_TD, "mean", lengths=batch.lengths_B, unsafe=True)

    def _hidden_states(
        self, token_ids_X: Tensor, attend: Callable[[Tensor], Tensor], kernels: ModuleType
    ) -> Tensor:
        # All tokens are of type 0: there is no second sequence, as BERT's inputs may have.
        words_VD, type_D = self.word_embeddings.weight, self.token_type_embeddings.weight[0]
        # A small batch has fewer tokens than the vocabulary has words, so the tokens are normed.
        if token_ids_X.numel() < len(words_VD):
            hidden_XD: Tensor = self.embedding_norm(words_VD[token_ids_X] + type_D)
        else:
            # There are no position embeddings, so a word always starts with the same numbers:
            # normalizing the vocabulary takes less time than normalizing every token.
            normed_VD = self.embedding_norm(words_VD + type_D)
            hidden_XD = functional.embedding(token_ids_X, normed_VD)
        for layer in self.layers:
            hidden_XD = layer(hidden_XD, attend, kernels)
        return hidden_XD

    def _split(self, qkv_XD: Tensor) -> Tensor:
        return qkv_XD.view(*qkv_XD.shape[:-1], 3, self.num_heads, -1)

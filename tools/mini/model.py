"""The small model in training: the backends' own modules, run on padded batches with gradients.

Shapes: C chunks, N stretches of a chunk, F stretches of all chunks, T tokens of the longest one, D
numbers per token, H heads, K numbers in an attention head, V words, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import sdpa_kernel
from virnucpro_dnabert_s.attention import SDPA_BACKENDS, attention_bias
from virnucpro_dnabert_s.model import DnabertS, ModelConfig
from virnucpro_esm2 import NUM_SPECIAL_TOKENS
from virnucpro_esm2.model import TOKEN_DROPOUT_SCALE, Esm2, Esm2Config
from virnucpro_esm2.rotary import default_frequencies

from tools.mini.stretches import (
    DNA_PAD,
    PROTEIN_MASK,
    PROTEIN_PAD,
    ChunkTokens,
    first_word_id,
    round_up,
)
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes

NUM_BUCKETS = 5
"""Into so many parts of like lengths the stretches of a step are sorted, to save padding."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the two encoders and of the head; `word_bp` bases make a token of DNA."""

    word_bp: int = 6
    dna_layers: int = 2
    dna_width: int = 192
    dna_heads: int = 3
    dna_inner: int = 384
    protein_layers: int = 4
    protein_width: int = 192
    protein_heads: int = 6
    protein_inner: int = 768
    protein_eps: float = 1e-5
    protein_token_dropout: bool = False
    head_width: int = 192
    hidden: int = 128


class MiniModel(nn.Module):
    """Two encoders, the head over both, a guess of masked tokens, and maps to teachers' embeddings.

    Attributes:
        sizes: The sizes of encoders and head.
        teacher_maps: For each teacher a linear map from protein embeddings to the teacher's.
    """

    def __init__(
        self, sizes: Sizes, dropout: float = 0.0, teacher_widths: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.dropout = dropout
        self.dna = DnabertS(
            ModelConfig(
                vocab_size=first_word_id(sizes.word_bp + 1),
                type_vocab_size=1,
                hidden_size=sizes.dna_width,
                num_hidden_layers=sizes.dna_layers,
                num_attention_heads=sizes.dna_heads,
                intermediate_size=sizes.dna_inner,
                layer_norm_eps=1e-5,
            )
        )
        config = Esm2Config(
            sizes.protein_layers,
            sizes.protein_width,
            sizes.protein_heads,
            sizes.protein_inner,
            sizes.protein_eps,
            sizes.protein_token_dropout,
        )
        self.protein = Esm2(config, dtype=torch.float32).to_empty(device="cpu")
        self.protein.set_rotary(default_frequencies(config.head_dim))
        head_sizes = ChunkHeadSizes(
            sizes.dna_width, sizes.protein_width, sizes.head_width, sizes.hidden
        )
        self.head = ChunkHead(head_sizes, dropout)
        self.dna_guess = nn.Linear(sizes.dna_width, sizes.dna_width)
        self.protein_guess = nn.Linear(sizes.protein_width, sizes.protein_width)
        self.teacher_maps = nn.ModuleList(
            nn.Linear(sizes.protein_width, width) for width in teacher_widths
        )
        for module in (self.dna, self.protein, self.dna_guess, self.protein_guess):
            module.apply(_initialize)

    def forward(
        self, whole: list[ChunkTokens], seen: list[ChunkTokens]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the chunks' logits (C,), the loss of guesses, and what the maps make (F, D).

        Args:
            whole: For each chunk length the tokens as they are.
            seen: The same with some tokens masked: what the encoders see.
        """
        whole_FT, seen_FT = join_proteins(whole), join_proteins(seen)
        protein_FD, hidden = self.embed_proteins(seen_FT)
        residues_VD = self.protein.embed_tokens.weight
        guesses = [guess_loss(self.protein_guess, hidden, residues_VD, whole_FT, seen_FT)]
        embeddings = []
        for one, masked in zip(whole, seen, strict=True):
            hidden_CTD = self.encode_dna(masked.dna_CT)
            embeddings.append(pool_dna(hidden_CTD, masked.dna_CT))
            every = [(torch.arange(len(hidden_CTD), device=hidden_CTD.device), hidden_CTD)]
            words_VD = self.dna.word_embeddings.weight
            guesses.append(guess_loss(self.dna_guess, every, words_VD, one.dna_CT, masked.dna_CT))
        guess = (guesses[0] + torch.stack(guesses[1:]).mean()) / 2
        mapped = [layer(protein_FD) for layer in self.teacher_maps]
        return self.judge(embeddings, protein_FD, whole), guess, mapped

    def score(self, chunks: list[ChunkTokens]) -> tuple[Tensor, Tensor]:
        """Return the chunks' logits (C,) and the protein embeddings (F, D), nothing masked."""
        protein_FD, _ = self.embed_proteins(join_proteins(chunks))
        embeddings = [pool_dna(self.encode_dna(one.dna_CT), one.dna_CT) for one in chunks]
        return self.judge(embeddings, protein_FD, chunks), protein_FD

    def judge(self, dna: list[Tensor], protein_FD: Tensor, chunks: list[ChunkTokens]) -> Tensor:
        """Return the logits (C,) of all chunks from their embeddings, computed in float32."""
        sizes = [one.is_stretch_CN.numel() for one in chunks]
        logits = []
        with torch.autocast(protein_FD.device.type, enabled=False):
            pieces = protein_FD.float().split(sizes)
            for dna_CQ, piece_FD, one in zip(dna, pieces, chunks, strict=True):
                protein_CNP = piece_FD.view(*one.is_stretch_CN.shape, -1)
                logits.append(self.head(dna_CQ, protein_CNP, one.features_CNK, one.is_stretch_CN))
        return torch.cat(logits)

    def embed_proteins(self, tokens_FT: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return float32 (F, D), the mean over residues, and the hidden states.

        The hidden states come in parts of like lengths: the indexes of stretches, and their hidden
        states, cut to the longest of the part.
        """
        parts = list(_sort_into_buckets(tokens_FT))
        hidden = [
            (index_F, self.encode_proteins(tokens_FT[index_F, :length]))
            for index_F, length in parts
        ]
        pooled = [
            pool_proteins(hidden_FTD, tokens_FT[index_F, : hidden_FTD.shape[1]])
            for index_F, hidden_FTD in hidden
        ]
        order_F = torch.cat([index_F for index_F, _ in parts]).argsort()
        return torch.cat(pooled)[order_F], hidden

    def encode_dna(self, tokens_CT: Tensor) -> Tensor:
        """Return the last hidden states (C, T, D) of `DnabertS` for padded tokens."""
        model = self.dna
        bias_CHTT = attention_bias(tokens_CT != DNA_PAD, model.num_heads, torch.float32)
        embedded_VD = model.word_embeddings.weight + model.token_type_embeddings.weight[0]
        hidden_CTD = functional.embedding(tokens_CT, model.embedding_norm(embedded_VD))
        for layer in model.layers:
            hidden_CTD = self._run_dna_layer(layer, hidden_CTD, bias_CHTT)
        return hidden_CTD

    def encode_proteins(self, tokens_FT: Tensor) -> Tensor:
        """Return the last hidden states (F, T, D) of `Esm2` for padded tokens."""
        model = self.protein
        num_tokens = tokens_FT.shape[1]
        angles = model.cos_PR[:num_tokens], model.sin_PR[:num_tokens]
        is_token_F11T = (tokens_FT != PROTEIN_PAD)[:, None, None]
        hidden_FTD = model.embed_tokens(tokens_FT)
        if model.config.token_dropout:
            # As ESM-2 was trained: masked tokens are zeros, and the others make up for them.
            is_masked_FT = tokens_FT == PROTEIN_MASK
            num_tokens_F = (tokens_FT != PROTEIN_PAD).sum(1)
            scale_F = TOKEN_DROPOUT_SCALE / (1 - is_masked_FT.sum(1) / num_tokens_F)
            hidden_FTD = hidden_FTD.masked_fill(is_masked_FT[..., None], 0)
            hidden_FTD = hidden_FTD * scale_F[:, None, None]
        for layer in model.layers:
            hidden_FTD = self._run_protein_layer(layer, hidden_FTD, angles, is_token_F11T)
        output_FTD: Tensor = model.final_norm(hidden_FTD)
        return output_FTD

    def compile_layers(self) -> None:
        """Let torch compile each encoder's layer, once for all of its layers and any shape."""
        torch._dynamo.config.recompile_limit = 64
        for name in ("_run_dna_layer", "_run_protein_layer"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))

    def _run_dna_layer(self, layer: Any, hidden_FTD: Tensor, bias_FHTT: Tensor) -> Tensor:
        query, key, value = self._split(layer.qkv(hidden_FTD), self.dna.num_heads)
        context_FTD = _attend(query, key, value, bias_FHTT)
        hidden_FTD = layer.attention_norm(hidden_FTD + self._drop(layer.attention_out(context_FTD)))
        gate, inner = layer.gate_and_value(hidden_FTD).chunk(2, -1)
        delta_FTD = layer.mlp_out(functional.gelu(gate) * inner)
        output_FTD: Tensor = layer.mlp_norm(hidden_FTD + self._drop(delta_FTD))
        return output_FTD

    def _run_protein_layer(
        self, layer: Any, hidden_FTD: Tensor, angles: tuple[Tensor, Tensor], is_token_F11T: Tensor
    ) -> Tensor:
        qkv_FTD = layer.qkv(layer.attention_norm(hidden_FTD))
        query, key, value = self._split(qkv_FTD, self.protein.config.num_heads)
        query, key = (_rotate(x, *angles) for x in (query, key))
        attended_FTD = layer.out(_attend(query, key, value, is_token_F11T))
        hidden_FTD = hidden_FTD + self._drop(attended_FTD)
        delta_FTD = layer.fc2(functional.gelu(layer.fc1(layer.ffn_norm(hidden_FTD))))
        return hidden_FTD + self._drop(delta_FTD)

    def _split(self, qkv_FTD: Tensor, num_heads: int) -> tuple[Tensor, ...]:
        """Return queries, keys and values (F, H, T, K)."""
        return qkv_FTD.unflatten(2, (3, num_heads, -1)).transpose(1, 3).unbind(2)

    def _drop(self, delta_FTD: Tensor) -> Tensor:
        return functional.dropout(delta_FTD, self.dropout, self.training)


def join_proteins(chunks: list[ChunkTokens]) -> Tensor:
    """Return int64 (F, T): the proteins of all chunks, one after the other."""
    longest = max(one.protein_CNT.shape[2] for one in chunks)
    flat = [one.protein_CNT.flatten(0, 1) for one in chunks]
    return torch.cat(
        [functional.pad(x, (0, longest - x.shape[1]), value=PROTEIN_PAD) for x in flat]
    )


def pool_dna(hidden_CTD: Tensor, tokens_CT: Tensor) -> Tensor:
    """Return float32 (C, D): the mean over all tokens, as the backend makes it."""
    is_token_CT1 = (tokens_CT != DNA_PAD)[..., None]
    return (hidden_CTD.float() * is_token_CT1).sum(1) / is_token_CT1.sum(1)


def pool_proteins(hidden_FTD: Tensor, tokens_FT: Tensor) -> Tensor:
    """Return float32 (F, D): the mean over residues, as the backend makes it; 0 without any."""
    # BOS is the first token, and EOS the last before the padding.
    num_residues_F1 = (tokens_FT != PROTEIN_PAD).sum(1, keepdim=True) - NUM_SPECIAL_TOKENS
    column_T = torch.arange(tokens_FT.shape[1], device=tokens_FT.device)
    is_residue_FT1 = ((column_T > 0) & (column_T <= num_residues_F1))[..., None]
    return (hidden_FTD.float() * is_residue_FT1).sum(1) / num_residues_F1.clamp(min=1)


def guess_loss(
    layer: nn.Linear,
    hidden: list[tuple[Tensor, Tensor]],
    words_VD: Tensor,
    whole_FT: Tensor,
    seen_FT: Tensor,
) -> Tensor:
    """Return the mean cross-entropy of the masked tokens; 0 if there are none.

    Args:
        layer: Makes guesses of hidden states.
        hidden: Indexes of sequences and their hidden states, maybe cut to fewer tokens.
        words_VD: The embeddings of all tokens.
        whole_FT: The tokens as they are.
        seen_FT: The tokens with some of them masked.
    """
    guesses, wanted = [], []
    for index_F, hidden_FTD in hidden:
        whole_part, seen_part = (x[index_F, : hidden_FTD.shape[1]] for x in (whole_FT, seen_FT))
        is_masked_FT = whole_part != seen_part
        guesses.append(hidden_FTD[is_masked_FT])
        wanted.append(whole_part[is_masked_FT])
    logits_MV = functional.linear(layer(torch.cat(guesses)), words_VD).float()
    losses_M = functional.cross_entropy(logits_MV, torch.cat(wanted), reduction="sum")
    return losses_M / max(len(logits_MV), 1)


def _sort_into_buckets(tokens_FT: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield the indexes of stretches of like lengths, and how many tokens the longest takes."""
    length_F, order_F = (tokens_FT != PROTEIN_PAD).sum(1).sort()
    size = -(-len(order_F) // NUM_BUCKETS)
    parts = order_F.split(size)
    lasts = [min((number + 1) * size, len(order_F)) - 1 for number in range(len(parts))]
    for index_F, length in zip(parts, length_F[lasts].tolist(), strict=True):
        yield index_F, round_up(length)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return softmax attention, (F, T, D)."""
    with sdpa_kernel(SDPA_BACKENDS):
        context_FHTK = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context_FHTK.transpose(1, 2).flatten(2)


def _rotate(x_FHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return queries or keys turned by their positions, as `virnucpro_esm2.rotary.rotate`."""
    first, second = x_FHTK.chunk(2, -1)
    turned = torch.cat((first * cos_TR - second * sin_TR, second * cos_TR + first * sin_TR), -1)
    return turned.to(x_FHTK.dtype)

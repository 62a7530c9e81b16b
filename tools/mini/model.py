"""The small model in training: the backends' own modules, run with gradients.

Proteins are packed. Chunks of one length have as many words of DNA, so DNA needs no packing.

Shapes: C chunks, N stretches of a chunk, F stretches of all chunks, T tokens of a chunk's DNA or of
all proteins, D numbers per token, H heads, K numbers in a head, V words, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import sdpa_kernel
from virnucpro_dnabert_s.attention import LENGTH_MULTIPLE, SDPA_BACKENDS, attention_bias
from virnucpro_dnabert_s.model import DnabertS, ModelConfig
from virnucpro_esm2 import NUM_SPECIAL_TOKENS
from virnucpro_esm2.attention import Attend, Packing, choose_attend
from virnucpro_esm2.model import TOKEN_DROPOUT_SCALE, Esm2, Esm2Config
from virnucpro_esm2.rotary import default_frequencies

from tools.mini.stretches import DNA_SPECIAL, PROTEIN_MASK, ChunkTokens, Proteins, first_word_id
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes


class Masked(NamedTuple):
    """What the encoders see of chunks: some tokens are masked, and to be guessed.

    Attributes:
        protein_T: int64, the tokens of all proteins, packed.
        protein_M: int64, which of them are masked.
        dna: For each chunk length the tokens (C, T), and which of them, flat, are masked (M,).
    """

    protein_T: Tensor
    protein_M: Tensor
    dna: list[tuple[Tensor, Tensor]]


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
        self.protein = Esm2(config, dtype=torch.float32).give_memory(torch.device("cpu"))
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
        self, chunks: list[ChunkTokens], proteins: Proteins, masked: Masked
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the chunks' logits (C,), the loss of guesses, and what the maps make (F, D).

        Args:
            chunks: For each chunk length the tokens as they are.
            proteins: Their proteins as they are.
            masked: What the encoders see of both.
        """
        seen = proteins._replace(token_ids_T=masked.protein_T)
        protein_FD, hidden_TD = self.embed_proteins(seen)
        layer, residues_VD = self.protein_guess, self.protein.embed_tokens.weight
        tokens_T = proteins.token_ids_T
        protein_loss = guess_loss(layer, hidden_TD, residues_VD, tokens_T, masked.protein_M)
        embeddings, dna_losses = [], []
        layer, words_VD = self.dna_guess, self.dna.word_embeddings.weight
        for one, (seen_CT, masked_M) in zip(chunks, masked.dna, strict=True):
            hidden_CTD = self.encode_dna(seen_CT)
            embeddings.append(pool_dna(hidden_CTD))
            hidden_TD, tokens_T = hidden_CTD.flatten(0, 1), one.dna_CT.flatten()
            dna_losses.append(guess_loss(layer, hidden_TD, words_VD, tokens_T, masked_M))
        guess = (protein_loss + torch.stack(dna_losses).mean()) / 2
        mapped = [layer(protein_FD) for layer in self.teacher_maps]
        return judge(self.head, embeddings, protein_FD, chunks), guess, mapped

    def score(self, chunks: list[ChunkTokens], proteins: Proteins) -> tuple[Tensor, Tensor]:
        """Return the chunks' logits (C,) and the protein embeddings (F, D), nothing masked."""
        protein_FD, _ = self.embed_proteins(proteins)
        embeddings = [pool_dna(self.encode_dna(one.dna_CT)) for one in chunks]
        return judge(self.head, embeddings, protein_FD, chunks), protein_FD

    def embed_proteins(self, proteins: Proteins) -> tuple[Tensor, Tensor]:
        """Return float32 (F, D), the mean over residues, and the last hidden states (T, D)."""
        hidden_TD = self.encode_proteins(proteins)
        return proteins.sort_back(pool_proteins(hidden_TD, proteins.packing)), hidden_TD

    def encode_dna(self, tokens_CT: Tensor) -> Tensor:
        """Return the last hidden states (C, T, D) of `DnabertS` for chunks of one length."""
        model, dtype = self.dna, _product_dtype(tokens_CT.device)
        num_tokens = tokens_CT.shape[1]
        tokens_CT = functional.pad(
            tokens_CT, (0, -num_tokens % LENGTH_MULTIPLE), value=DNA_SPECIAL.index("[PAD]")
        )
        # All chunks are padded alike.
        is_token_1T = torch.arange(tokens_CT.shape[1], device=tokens_CT.device)[None] < num_tokens
        bias_1HTT = attention_bias(is_token_1T, model.num_heads, dtype)
        embedded_VD = model.word_embeddings.weight + model.token_type_embeddings.weight[0]
        hidden_CTD = functional.embedding(tokens_CT, model.embedding_norm(embedded_VD))
        for layer in model.layers:
            hidden_CTD = self._run_dna_layer(layer, hidden_CTD, bias_1HTT)
        return hidden_CTD[:, :num_tokens]

    def encode_proteins(self, proteins: Proteins) -> Tensor:
        """Return the last hidden states (T, D) of `Esm2`."""
        model, packing, tokens_T = self.protein, proteins.packing, proteins.token_ids_T
        place_T = torch.arange(len(tokens_T), device=tokens_T.device)
        position_T = place_T - proteins.spread(packing.offsets[:-1])
        angles = model.cos_PR[position_T], model.sin_PR[position_T]
        config, device = model.config, tokens_T.device
        attend = choose_attend(
            "sdpa", head_dim=config.head_dim, dtype=_product_dtype(device), device=device
        )
        hidden_TD = model.embed_tokens(tokens_T)
        if config.token_dropout:
            # As ESM-2 was trained: masked tokens are zeros, and the others make up for them.
            is_masked_T = tokens_T == PROTEIN_MASK
            num_masked_F = sum_proteins(is_masked_T[:, None].float(), packing)
            scale_F1 = TOKEN_DROPOUT_SCALE / (1 - num_masked_F / packing.lengths_B[:, None])
            hidden_TD = hidden_TD.masked_fill(is_masked_T[:, None], 0)
            hidden_TD = hidden_TD * proteins.spread(scale_F1)
        for layer in model.layers:
            hidden_TD = self._run_protein_layer(layer, hidden_TD, angles, packing, attend)
        output_TD: Tensor = model.final_norm(hidden_TD)
        return output_TD

    def compile_layers(self) -> None:
        """Let torch compile each encoder's layer, once for all of its layers and any shape."""
        torch._dynamo.config.recompile_limit = 64
        for name in ("_run_dna_layer", "_run_protein_layer"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))

    def _run_dna_layer(self, layer: Any, hidden_CTD: Tensor, bias_1HTT: Tensor) -> Tensor:
        qkv_CT3HK = layer.qkv(hidden_CTD).unflatten(2, (3, self.dna.num_heads, -1))
        query, key, value = qkv_CT3HK.transpose(1, 3).unbind(2)
        with sdpa_kernel(SDPA_BACKENDS):
            context_CHTK = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias_1HTT
            )
        context_CTD = context_CHTK.transpose(1, 2).flatten(2)
        hidden_CTD = layer.attention_norm(hidden_CTD + self._drop(layer.attention_out(context_CTD)))
        gate, inner = layer.gate_and_value(hidden_CTD).chunk(2, -1)
        delta_CTD = layer.mlp_out(functional.gelu(gate) * inner)
        output_CTD: Tensor = layer.mlp_norm(hidden_CTD + self._drop(delta_CTD))
        return output_CTD

    def _run_protein_layer(
        self,
        layer: Any,
        hidden_TD: Tensor,
        angles: tuple[Tensor, Tensor],
        packing: Packing,
        attend: Attend,
    ) -> Tensor:
        num_heads = self.protein.config.num_heads
        qkv_T3HK = layer.qkv(layer.attention_norm(hidden_TD)).unflatten(1, (3, num_heads, -1))
        query, key, value = qkv_T3HK.unbind(1)
        query, key = (_rotate(x, *angles) for x in (query, key))
        attended_THK = attend(query, key, value, packing)
        hidden_TD = hidden_TD + self._drop(layer.out(attended_THK.flatten(1)))
        delta_TD = layer.fc2(functional.gelu(layer.fc1(layer.ffn_norm(hidden_TD))))
        return hidden_TD + self._drop(delta_TD)

    def _drop(self, delta: Tensor) -> Tensor:
        return functional.dropout(delta, self.dropout, self.training)


def judge(
    head: ChunkHead, dna: list[Tensor], protein_FD: Tensor, chunks: list[ChunkTokens]
) -> Tensor:
    """Return the logits (C,) of all chunks from their embeddings, computed in float32."""
    sizes = [one.is_stretch_CN.numel() for one in chunks]
    logits = []
    with torch.autocast(protein_FD.device.type, enabled=False):
        pieces = protein_FD.float().split(sizes)
        for dna_CQ, piece_FD, one in zip(dna, pieces, chunks, strict=True):
            protein_CNP = piece_FD.view(*one.is_stretch_CN.shape, -1)
            logits.append(head(dna_CQ, protein_CNP, one.features_CNK, one.is_stretch_CN))
    return torch.cat(logits)


def pool_dna(hidden_CTD: Tensor) -> Tensor:
    """Return float32 (C, D): the mean over all tokens, as the backend makes it."""
    return hidden_CTD.float().mean(1)


def pool_proteins(hidden_TD: Tensor, packing: Packing) -> Tensor:
    """Return float32 (F, D): the mean over residues, as the backend makes it; 0 without any."""
    # BOS is the first token of a protein, and EOS the last.
    starts_F, ends_F = packing.offsets[:-1], packing.offsets[1:]
    hidden_TD = hidden_TD.float().index_fill(0, torch.cat((starts_F, ends_F - 1)).long(), 0.0)
    num_residues_F1 = (packing.lengths_B - NUM_SPECIAL_TOKENS)[:, None]
    return sum_proteins(hidden_TD, packing) / num_residues_F1.clamp(min=1)


def sum_proteins(values_TD: Tensor, packing: Packing) -> Tensor:
    """Return (F, D): the sums over the tokens of each protein."""
    # `unsafe` skips a check of the lengths, for which the CPU would wait for the GPU.
    return torch.segment_reduce(values_TD, "sum", lengths=packing.lengths_B, unsafe=True)


def guess_loss(
    layer: nn.Linear, hidden_TD: Tensor, words_VD: Tensor, tokens_T: Tensor, masked_M: Tensor
) -> Tensor:
    """Return the mean cross-entropy of the masked tokens; 0 if there are none.

    Args:
        layer: Makes guesses of hidden states.
        hidden_TD: The hidden states of all tokens.
        words_VD: The embeddings of all words.
        tokens_T: The tokens as they are.
        masked_M: Which of them are masked.
    """
    logits_MV = functional.linear(layer(hidden_TD[masked_M]), words_VD).float()
    loss = functional.cross_entropy(logits_MV, tokens_T[masked_M], reduction="sum")
    return loss / max(len(masked_M), 1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def _product_dtype(device: torch.device) -> torch.dtype:
    """Return what products are computed in."""
    is_half = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_half else torch.float32


def _rotate(x_THK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return queries or keys turned by their positions, as `virnucpro_esm2.rotary.rotate`."""
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    first, second = x_THK.chunk(2, -1)
    turned = torch.cat((first * cos_T1R - second * sin_T1R, second * cos_T1R + first * sin_T1R), -1)
    return turned.to(x_THK.dtype)

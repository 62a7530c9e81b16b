"""The mini model in training: the backends' own modules, run on padded batches with gradients.

Shapes: F frames, T tokens of the longest frame, D numbers per token, H heads, K numbers in a head,
V words, M masked tokens, C the classes `others` and `virus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import sdpa_kernel
from virnucpro_dnabert_s.attention import SDPA_BACKENDS, attention_bias
from virnucpro_dnabert_s.model import DnabertS, ModelConfig
from virnucpro_esm2 import NUM_SPECIAL_TOKENS
from virnucpro_esm2.model import Esm2, Esm2Config, default_frequencies

from tools.mini.frames import DNA_PAD, PROTEIN_PAD, first_word_id


@dataclass(frozen=True)
class Sizes:
    """The sizes of the two encoders and of the classifier; `word_bp` bases make a token of DNA."""

    word_bp: int = 6
    dna_layers: int = 3
    dna_width: int = 192
    dna_heads: int = 3
    dna_inner: int = 384
    protein_layers: int = 3
    protein_width: int = 192
    protein_heads: int = 3
    protein_inner: int = 768
    hidden: int = 128


class Head(nn.Module):
    """The classifier, under the names of tensors that `virnucpro.scoring.classifier` reads."""

    def __init__(self, input_dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(input_dim, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.dropout = nn.Dropout(dropout)
        self.output_layer = nn.Linear(hidden, 2)

    def forward(self, features_FD: Tensor) -> Tensor:
        """Return logits (F, C)."""
        hidden_FD = self.bn1(self.hidden_layer(features_FD)).relu()
        logits_FC: Tensor = self.output_layer(self.dropout(hidden_FD))
        return logits_FC


class MiniModel(nn.Module):
    """Two encoders, the classifier over both, and for each encoder a guess of masked tokens."""

    def __init__(self, sizes: Sizes, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes = sizes
        self.dropout = dropout
        vocabulary = first_word_id(sizes.word_bp + 1)
        self.dna = DnabertS(
            ModelConfig(
                vocab_size=vocabulary,
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
            token_dropout=False,
        )
        self.protein = Esm2(config, dtype=torch.float32).to_empty(device="cpu")
        self.protein.set_rotary(default_frequencies(config.head_dim))
        self.head = Head(sizes.dna_width + sizes.protein_width, sizes.hidden, dropout)
        self.dna_guess = nn.Linear(sizes.dna_width, sizes.dna_width)
        self.protein_guess = nn.Linear(sizes.protein_width, sizes.protein_width)
        self.apply(_initialize)

    def forward(
        self, tokens: list[tuple[Tensor, Tensor]], masked: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of all frames, and the mean loss of guessing masked tokens.

        Args:
            tokens: For each chunk length the DNA (F, T) and protein tokens (F, T) as they are.
            masked: The same with some tokens masked: what the encoders see.
        """
        features, guesses = [], []
        for whole, seen in zip(tokens, masked, strict=True):
            dna_FTD, protein_FTD = self.encode_dna(seen[0]), self.encode_proteins(seen[1])
            features.append(pool(dna_FTD, seen[0], protein_FTD, seen[1]))
            words_VD = self.dna.word_embeddings.weight
            residues_VD = self.protein.embed_tokens.weight
            guesses.append(guess_loss(self.dna_guess, dna_FTD, words_VD, whole[0], seen[0]))
            guesses.append(
                guess_loss(self.protein_guess, protein_FTD, residues_VD, whole[1], seen[1])
            )
        return self.head(torch.cat(features)), torch.stack(guesses).mean()

    def encode_dna(self, tokens_FT: Tensor) -> Tensor:
        """Return the last hidden states (F, T, D) of `DnabertS` for padded tokens."""
        model = self.dna
        bias_FHTT = attention_bias(tokens_FT != DNA_PAD, model.num_heads, torch.float32)
        embedded_VD = model.word_embeddings.weight + model.token_type_embeddings.weight[0]
        hidden_FTD = functional.embedding(tokens_FT, model.embedding_norm(embedded_VD))
        for layer in model.layers:
            hidden_FTD = self._run_dna_layer(layer, hidden_FTD, bias_FHTT)
        return hidden_FTD

    def encode_proteins(self, tokens_FT: Tensor) -> Tensor:
        """Return the last hidden states (F, T, D) of `Esm2` for padded tokens."""
        model = self.protein
        num_tokens = tokens_FT.shape[1]
        angles = model.cos_PR[:num_tokens], model.sin_PR[:num_tokens]
        is_token_F11T = (tokens_FT != PROTEIN_PAD)[:, None, None]
        hidden_FTD = model.embed_tokens(tokens_FT)
        for layer in model.layers:
            hidden_FTD = self._run_protein_layer(layer, hidden_FTD, angles, is_token_F11T)
        output_FTD: Tensor = model.final_norm(hidden_FTD)
        return output_FTD

    def compile_layers(self) -> None:
        """Let torch compile each encoder's layer, once for all of its layers and any shape."""
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


def pool(dna_FTD: Tensor, dna_FT: Tensor, protein_FTD: Tensor, protein_FT: Tensor) -> Tensor:
    """Return float32 (F, D): the backends' mean embeddings, DNA then protein."""
    is_token_FT1 = (dna_FT != DNA_PAD)[..., None]
    dna_FD = (dna_FTD.float() * is_token_FT1).sum(1) / is_token_FT1.sum(1)
    # BOS is the first token, and EOS the last before the padding.
    num_residues_F1 = (protein_FT != PROTEIN_PAD).sum(1, keepdim=True) - NUM_SPECIAL_TOKENS
    column_T = torch.arange(protein_FT.shape[1], device=protein_FT.device)
    is_residue_FT1 = ((column_T > 0) & (column_T <= num_residues_F1))[..., None]
    protein_FD = (protein_FTD.float() * is_residue_FT1).sum(1) / num_residues_F1
    return torch.cat((dna_FD, protein_FD), 1)


def guess_loss(
    layer: nn.Linear, hidden_FTD: Tensor, words_VD: Tensor, whole_FT: Tensor, seen_FT: Tensor
) -> Tensor:
    """Return the mean cross-entropy of the masked tokens; 0 if there are none."""
    is_masked_FT = whole_FT != seen_FT
    logits_MV = functional.linear(layer(hidden_FTD[is_masked_FT]), words_VD).float()
    losses_M = functional.cross_entropy(logits_MV, whole_FT[is_masked_FT], reduction="sum")
    return losses_M / max(len(logits_MV), 1)


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
    """Return queries or keys turned by their positions, as `virnucpro_esm2.model.rotate`."""
    first, second = x_FHTK.chunk(2, -1)
    turned = torch.cat((first * cos_TR - second * sin_TR, second * cos_TR + first * sin_TR), -1)
    return turned.to(x_FHTK.dtype)

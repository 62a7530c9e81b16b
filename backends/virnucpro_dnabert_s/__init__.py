"""DNABERT-S: the DNA language model, from its published files but without their code.

Zhou et al., "DNABERT-S: pioneering species differentiation with species-aware DNA embeddings"
(2024). DNABERT-2 (Zhou et al. 2023) has the same architecture, so this backend reads it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from virnucpro.backend.interface import (
    BackendInfo,
    Collator,
    Encoder,
    EncoderSettings,
    TrainableBackend,
    TrainingSettings,
    Weights,
)

if TYPE_CHECKING:
    from torch import nn

TOKENS_PER_BASE = 109 / 500
"""Measured on random DNA with the published tokenizer."""


class DnabertSBackend:
    """Embeds DNA with DNABERT-S, DNABERT-2, or any other size of their architecture."""

    info = BackendInfo(
        name="dnabert-s",
        alphabet="dna",
        # The weights decide, because other sizes of the architecture are read as well.
        embedding_dim=None,
        # ALiBi knows no longest sequence, so nothing is cut.
        max_tokens=None,
        # It stands in the identity of every part: with another wording, finished parts count as
        # those of another run.
        pooling="mean over all tokens, CLS and SEP included",
        linear_layers=("qkv", "attention_out", "gate_and_value", "mlp_out"),
    )

    def token_cost(self, sequence: str) -> int:
        """Return about how many tokens `sequence` has, with CLS and SEP.

        The tokenizer joins A, C, G and T to longer tokens; each other letter is one [UNK].
        """
        # In C: every row of a run comes here.
        num_unknown = len(sequence.encode().translate(None, b"ACGT"))
        return 2 + num_unknown + round((len(sequence) - num_unknown) * TOKENS_PER_BASE)

    def open_weights(self, location: str) -> Weights:
        """Find and check `location`: a directory, a weights file or a hub id."""
        # Not at the top: listing the backends must not import torch.
        from virnucpro_dnabert_s import weights

        return weights.open_weights(location)

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator that uses the tokenizer.json in the directory of `weights`."""
        from virnucpro_dnabert_s.tokens import BpeCollator
        from virnucpro_dnabert_s.weights import find_files

        return BpeCollator(find_files(weights.path).tokenizer)

    def load_encoder(self, weights: Weights, **settings: Unpack[EncoderSettings]) -> Encoder:
        """Load the model onto `device`; `auto` is our own kernels where they work, else `sdpa`."""
        from virnucpro_dnabert_s.weights import load_model

        return load_model(weights.path, **settings)

    def load_trainable(self, weights: Weights, **settings: Unpack[TrainingSettings]) -> nn.Module:
        """Load the model onto `device` to train it, in padded batches."""
        from virnucpro_dnabert_s.weights import load_trainable

        return load_trainable(weights.path, **settings)


backend: TrainableBackend = DnabertSBackend()

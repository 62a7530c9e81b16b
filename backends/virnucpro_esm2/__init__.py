"""ESM-2: the protein language model in any size, without padding."""

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

MAX_RESIDUES = 1024
"""Longer proteins are cut to their first 1,024 residues, as in ESM-2's training."""

NUM_SPECIAL_TOKENS = 2
"""One BOS (`<cls>`) before and one EOS after the residues."""

MIN_FP8_TOKENS = 40 + NUM_SPECIAL_TOKENS
"""Shorter proteins are embedded in bf16 when a run is in fp8."""


class Esm2Backend:
    """Embeds proteins with any ESM-2, 8M to 15B (Lin et al. 2023, doi:10.1126/science.ade2574)."""

    info = BackendInfo(
        name="esm2",
        alphabet="protein",
        embedding_dim=None,
        max_tokens=MAX_RESIDUES + NUM_SPECIAL_TOKENS,
        # It stands in the identity of every part: with another wording, finished parts count as
        # those of another run.
        pooling="mean over residues, at most 1024, without BOS and EOS",
        # The published widths are multiples of 16, as products in 8 bits need.
        supports_fp8=True,
        min_fp8_tokens=MIN_FP8_TOKENS,
        max_letters=MAX_RESIDUES,
        linear_layers=("qkv", "out", "fc1", "fc2"),
    )

    def token_cost(self, sequence: str) -> int:
        """Return the exact number of tokens of `sequence`, BOS and EOS included."""
        return min(len(sequence), MAX_RESIDUES) + NUM_SPECIAL_TOKENS

    def open_weights(self, location: str) -> Weights:
        """Find and check a fair-esm `.pt` file, a transformers directory or a hub id."""
        # Not at the top: listing the backends must not import torch.
        from virnucpro_esm2.weights import open_weights

        return open_weights(location)

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator, which is the same for all `weights`."""
        from virnucpro_esm2.tokens import Esm2Collator

        return Esm2Collator()

    def load_encoder(self, weights: Weights, **settings: Unpack[EncoderSettings]) -> Encoder:
        """Load the model onto `device`; `auto` is our own kernels where they work, else `sdpa`."""
        from virnucpro_esm2.weights import load_model

        return load_model(weights.path, **settings)

    def load_trainable(self, weights: Weights, **settings: Unpack[TrainingSettings]) -> nn.Module:
        """Load the model onto `device` to train it, in packed batches, too."""
        from virnucpro_esm2.weights import load_trainable

        return load_trainable(weights.path, **settings)


backend: TrainableBackend = Esm2Backend()

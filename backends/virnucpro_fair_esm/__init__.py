"""ESM-2 as the original VirNucPro computes it: by the package fair-esm, in padded batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virnucpro.backend.interface import (
    Attention,
    Backend,
    BackendInfo,
    Collator,
    Encoder,
    Requirement,
    Weights,
)

if TYPE_CHECKING:
    import torch

MAX_RESIDUES = 1024
"""The original cuts longer proteins to so many residues."""

NUM_SPECIAL_TOKENS = 2

FAIR_ESM = Requirement("fair-esm", "virnucpro[reference]")


class FairEsmBackend:
    """Embeds proteins with ESM-2 in the arithmetic of fair-esm, as a reference."""

    info = BackendInfo(
        name="fair-esm",
        alphabet="protein",
        embedding_dim=None,
        max_tokens=MAX_RESIDUES + NUM_SPECIAL_TOKENS,
        # It stands in the identity of every part: with another wording, finished parts count as
        # those of another run.
        pooling="mean over residues, at most 1024, without BOS and EOS",
        interface_version=1,
        max_letters=MAX_RESIDUES,
        needs=(FAIR_ESM,),
    )

    def token_cost(self, sequence: str) -> int:
        """Return the number of tokens of `sequence`, BOS and EOS included."""
        return min(len(sequence), MAX_RESIDUES) + NUM_SPECIAL_TOKENS

    def open_weights(self, location: str) -> Weights:
        """Find and check a `.pt` file of fair-esm."""
        # Not at the top: listing the backends must not import torch.
        from virnucpro_fair_esm.weights import open_weights

        return open_weights(location)

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator, which is the same for all `weights`."""
        from virnucpro_fair_esm.tokens import FairEsmCollator

        return FairEsmCollator(MAX_RESIDUES)

    def load_encoder(
        self, weights: Weights, *, dtype: torch.dtype, device: torch.device, attention: Attention
    ) -> Encoder:
        """Load the model onto `device`."""
        from virnucpro_fair_esm.model import load_model

        return load_model(weights.path, dtype=dtype, device=device, attention=attention)


backend: Backend = FairEsmBackend()

"""Any encoder that transformers' `AutoModel` loads without code from the hub: the plain road."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virnucpro.backend.interface import (
    Alphabet,
    Backend,
    BackendInfo,
    Collator,
    Encoder,
    Weights,
)

if TYPE_CHECKING:
    import torch

    from virnucpro.backend.interface import Attention

MAX_LETTERS: dict[Alphabet, int] = {"protein": 1024, "dna": 5969}
"""Longer sequences are cut. 5,969 bases are 994 words of 6 and 5 single bases: with the one before
them, the 1,000 tokens that the nucleotide-transformer reads."""

NUM_SPECIAL_TOKENS = 2

_LETTERS_OF_TOKEN: dict[Alphabet, int] = {"protein": 1, "dna": 6}
"""How many letters a token is assumed to have, before the tokenizer is known."""


class TransformersBackend:
    """Embeds proteins or DNA with an encoder of transformers."""

    def __init__(self, name: str, alphabet: Alphabet) -> None:
        most = MAX_LETTERS[alphabet]
        self.info = BackendInfo(
            name=name,
            alphabet=alphabet,
            embedding_dim=None,
            max_tokens=most + NUM_SPECIAL_TOKENS,
            pooling="mean over tokens, without special tokens",
            interface_version=1,
            max_letters=most,
        )

    def token_cost(self, sequence: str) -> int:
        """Return about the number of tokens: one for each residue, or for 6 bases."""
        alphabet = self.info.alphabet
        num_letters = min(len(sequence), MAX_LETTERS[alphabet])
        return num_letters // _LETTERS_OF_TOKEN[alphabet] + NUM_SPECIAL_TOKENS

    def open_weights(self, location: str) -> Weights:
        """Find and check a transformers directory or a hub id.

        Raises:
            WeightsError: Nothing is there, it is unreadable or unsafe, or the model needs code of
                its own or is no encoder.
        """
        from virnucpro_transformers.weights import open_weights

        return open_weights(location)

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator with the tokenizer that lies beside the weights.

        Raises:
            WeightsError: There is no tokenizer, or it does not read this alphabet.
        """
        from virnucpro_transformers.tokens import load_collator

        return load_collator(weights.path, self.info.alphabet, MAX_LETTERS[self.info.alphabet])

    def load_encoder(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: Attention,
    ) -> Encoder:
        """Load the model onto `device`; `auto` is transformers' own choice.

        Raises:
            WeightsError: The file does not hold what the model needs.
            UsageError: The model does not have this attention.
        """
        from virnucpro_transformers.model import load_model

        return load_model(weights.path, dtype=dtype, device=device, attention=attention)


backend: Backend = TransformersBackend("transformers", "protein")
dna_backend: Backend = TransformersBackend("transformers-dna", "dna")

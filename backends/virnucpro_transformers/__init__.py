"""Any encoder that transformers' `AutoModel` loads without code from the hub: the plain road."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from virnucpro.backend.interface import (
    Alphabet,
    BackendInfo,
    Collator,
    Encoder,
    EncoderSettings,
    Requirement,
    TrainableBackend,
    TrainingSettings,
    Weights,
)

if TYPE_CHECKING:
    from torch import nn

MAX_LETTERS: dict[Alphabet, int] = {"protein": 1024, "dna": 5969}
"""Longer sequences are cut. 5,969 bases are 994 words of 6 and 5 single bases: with the one before
them, the 1,000 tokens that the nucleotide-transformer reads."""

NUM_SPECIAL_TOKENS = 2

TRANSFORMERS = Requirement("transformers", "virnucpro[transformers]")

_LETTERS_OF_TOKEN: dict[Alphabet, int] = {"protein": 1, "dna": 6}
"""How many letters a token is assumed to have, before the tokenizer is known."""


LINEAR_LAYERS = (
    *("query", "key", "value", "dense"),  # BERT, ESM, RoBERTa
    *("q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "fc1", "fc2"),
    *("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),  # DistilBERT
    *("Wqkv", "Wi", "Wo"),  # ModernBERT
)
"""What transformers' encoders call the linear layers of their attention and feed-forward."""


class TransformersBackend:
    """Embeds proteins or DNA with an encoder of transformers."""

    def __init__(self, name: str, alphabet: Alphabet) -> None:
        most = MAX_LETTERS[alphabet]
        self.info = BackendInfo(
            name=name,
            alphabet=alphabet,
            embedding_dim=None,
            # At worst, each letter is a token: bases around an N make no word of 6.
            max_tokens=most + NUM_SPECIAL_TOKENS,
            # It stands in the identity of every part: with another wording, finished parts count as
            # those of another run.
            pooling="mean over tokens, without special tokens",
            interface_version=1,
            max_letters=most,
            linear_layers=LINEAR_LAYERS,
            needs=(TRANSFORMERS,),
        )

    def token_cost(self, sequence: str) -> int:
        """Return about the number of tokens: one for each residue, or for 6 bases."""
        alphabet = self.info.alphabet
        num_letters = min(len(sequence), MAX_LETTERS[alphabet])
        return num_letters // _LETTERS_OF_TOKEN[alphabet] + NUM_SPECIAL_TOKENS

    def open_weights(self, location: str) -> Weights:
        """Find and check a transformers directory or a hub id."""
        # Not at the top: listing the backends must not import torch.
        from virnucpro_transformers.weights import open_weights

        return open_weights(location)

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator with the tokenizer that lies beside the weights."""
        from virnucpro_transformers.tokens import load_collator

        return load_collator(weights.path, self.info.alphabet, MAX_LETTERS[self.info.alphabet])

    def load_encoder(self, weights: Weights, **settings: Unpack[EncoderSettings]) -> Encoder:
        """Load the model onto `device`; `auto` is transformers' own choice."""
        from virnucpro_transformers.model import load_model

        return load_model(weights.path, **settings)

    def load_trainable(self, weights: Weights, **settings: Unpack[TrainingSettings]) -> nn.Module:
        """Load the model onto `device` to train it, without what embeddings do not need."""
        from virnucpro_transformers.model import load_trainable

        return load_trainable(weights.path, **settings)


backend: TrainableBackend = TransformersBackend("transformers", "protein")
dna_backend: TrainableBackend = TransformersBackend("transformers-dna", "dna")

"""The toy's tokenizer and model.

Shapes: B sequences in a batch, T tokens of all of them together, E the embedding's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.changes import Changes, apply_change, check_changes
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.tokens import pack_tokens

NUM_LETTERS = 27  # A to Z, and one for everything else


class ToyCollator:
    """Makes one token of each letter and the letter before it."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`, packed end to end."""
        return pack_tokens(rows, [self._tokenize(sequence) for sequence in sequences])

    def _tokenize(self, sequence: str) -> Int64Array:
        letters = np.frombuffer(sequence[: self.max_tokens].encode(), np.uint8).astype(np.int64)
        codes = letters - ord("A") + 1
        codes[(codes < 0) | (codes >= NUM_LETTERS)] = 0
        before = np.concatenate([[0], codes[:-1]])
        return NUM_LETTERS * before + codes


class ToyEncoder(nn.Module):
    """A vector for each token, mixed by one layer and averaged over each sequence."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.pairs = nn.Embedding(NUM_LETTERS**2, embedding_dim)
        self.mix = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Return float32 (B, E), averaged in float32 whatever precision the weights have."""
        hidden_TE = torch.tanh(self.mix(self.pairs(batch.token_ids_T)))
        return torch.segment_reduce(hidden_TE.float(), "mean", lengths=batch.lengths_B)


def load_toy(tensors: Mapping[str, torch.Tensor], changes: Changes | None = None) -> ToyEncoder:
    """Return the model of tensors from a file, with `changes` merged in float32."""
    changes = changes or {}
    check_changes(changes, {name: tensor.shape for name, tensor in tensors.items()})
    changed = {name: apply_change(tensors[name], change) for name, change in changes.items()}
    encoder = ToyEncoder(len(tensors["mix.bias"]))
    encoder.load_state_dict({**tensors, **changed})
    return encoder


def write_toy_weights(path: Path, *, embedding_dim: int = 16, seed: int = 0) -> Path:
    """Write random weights to `path`, a `.safetensors` file, and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(ToyEncoder(embedding_dim).state_dict(), path)
    return path

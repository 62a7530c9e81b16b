"""Tokenizes by fair-esm's own alphabet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.tokens import pack_tokens
from virnucpro_fair_esm.weights import import_esm


@cache
def load_alphabet() -> Any:
    """Return the alphabet of ESM-2, which is that of ESM-1b."""
    return import_esm().data.Alphabet.from_architecture("ESM-1b")


class FairEsmCollator:
    """Cuts proteins as the original does, and puts BOS and EOS around them."""

    def __init__(self, max_residues: int) -> None:
        self.max_residues = max_residues

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`, packed end to end."""
        alphabet = load_alphabet()
        # Not by `encode`: it has no token for J and `*`, and raises a KeyError. Each letter is one
        # token, so letters are cut as fair-esm's BatchConverter cuts tokens.
        tokens = [
            [alphabet.get_idx(letter) for letter in sequence[: self.max_residues]]
            for sequence in sequences
        ]
        return pack_tokens(
            rows, [np.array([alphabet.cls_idx, *ids, alphabet.eos_idx]) for ids in tokens]
        )

"""Small models and chunks for the tests of this folder."""

from __future__ import annotations

import numpy as np
import torch

from tools.mini.model import Sizes
from virnucpro.training.stretches import CODE_OF_BYTE

SIZES = Sizes(
    word_bp=3,
    dna_layers=2,
    dna_width=12,
    dna_heads=2,
    dna_inner=20,
    protein_layers=2,
    protein_width=16,
    protein_heads=2,
    protein_inner=24,
    head_width=10,
    hidden=8,
)


def random_chunks(num: int, length: int, seed: int, letters: str = "ACGT") -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), length)) for _ in range(num)]


def as_codes(chunks: list[str]) -> torch.Tensor:
    codes = np.frombuffer("".join(chunks).encode().translate(CODE_OF_BYTE), np.uint8).copy()
    return torch.from_numpy(codes).view(len(chunks), -1)


def unpad(tokens_FT: torch.Tensor, padding: int) -> list[list[int]]:
    return [[token for token in row if token != padding] for row in tokens_FT.tolist()]

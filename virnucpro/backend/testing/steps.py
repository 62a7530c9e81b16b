"""Steps that the tests of the contract share.

Shapes: B sequences in a batch, E the embedding's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from virnucpro.backend.interface import Attention, Backend, Collator, Encoder, TokenBatch, Weights
from virnucpro.errors import UsageError

CPU = torch.device("cpu")

# Beside the mark `gpu`, which only our own tests know.
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def collate(collator: Collator, sequences: Sequence[str]) -> TokenBatch:
    """Return the batch of sequences of rows 0, 1, 2 and so on."""
    return collator(np.arange(len(sequences), dtype=np.int64), sequences)


def load_encoder(
    backend: Backend,
    weights: Weights,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    attention: Attention = "auto",
    **changes: Any,
) -> Encoder:
    """Return the encoder, by default in float32 on the CPU."""
    return backend.load_encoder(weights, dtype=dtype, device=device, attention=attention, **changes)


def load_encoder_or_skip(backend: Backend, weights: Weights, **settings: Any) -> Encoder:
    """Return the encoder, or skip the test if the backend does not have these settings."""
    try:
        return load_encoder(backend, weights, **settings)
    except UsageError as error:
        # A backend may lack an attention, if it says so by a UsageError.
        return cast("Encoder", pytest.skip(str(error)))


def embed(encoder: Encoder, batch: TokenBatch) -> torch.Tensor:
    """Return the embeddings (B, E) of a batch."""
    with torch.inference_mode():
        return encoder(batch)


def max_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest number in `other`."""
    return float((one - other).abs().max() / other.abs().max())

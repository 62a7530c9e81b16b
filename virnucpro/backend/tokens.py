"""Packs tokenized sequences into a batch, for the collators of backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import TokenBatch


def pack_tokens(rows: Int64Array, token_ids: Sequence[np.ndarray[Any, Any]]) -> TokenBatch:
    """Return the batch of sequences that are given as one array of token ids each."""
    lengths = [len(ids) for ids in token_ids]
    # int64, because torch's embedding tables take indices of this type.
    packed = np.concatenate(token_ids).astype(np.int64, copy=False)
    return TokenBatch(torch.from_numpy(packed), torch.tensor(lengths), max(lengths), rows)

"""Packs tokenized sequences into a batch, and pads them again for models that know no packs.

Shapes: B sequences in a batch, L tokens of the longest one, D numbers per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import TokenBatch


def pack_tokens(rows: Int64Array, token_ids: Sequence[np.ndarray[Any, Any]]) -> TokenBatch:
    """Return the batch of sequences that are given as one array of token ids each."""
    lengths = [len(ids) for ids in token_ids]
    # int64, because torch's embedding tables take indices of this type.
    packed = np.concatenate(token_ids).astype(np.int64, copy=False)
    return TokenBatch(torch.from_numpy(packed), torch.tensor(lengths), max(lengths), rows)


def pad_tokens(batch: TokenBatch, pad_id: int) -> Tensor:
    """Return int64 (B, L): the tokens of each sequence, and `pad_id` after them."""
    pieces = list(torch.split(batch.token_ids_T, batch.lengths_B.tolist()))
    return pad_sequence(pieces, batch_first=True, padding_value=pad_id)


def mark_tokens(batch: TokenBatch, num_ends: int = 0) -> Tensor:
    """Return bool (B, L): where padded sequences have tokens, without `num_ends` at either end."""
    position_L = torch.arange(batch.max_length, device=batch.lengths_B.device)
    return (position_L >= num_ends) & (position_L < batch.lengths_B[:, None] - num_ends)


def mean_where(hidden_BLD: Tensor, is_counted_BL: Tensor) -> Tensor:
    """Return float32 (B, D): each sequence's mean over the tokens that count."""
    # Set to zero and not multiplied: a zero times NaN is NaN. In float32, because a sum of many
    # tokens in half precision loses digits.
    hidden_BLD = hidden_BLD.masked_fill(~is_counted_BL[..., None], 0)
    return hidden_BLD.sum(dim=1, dtype=torch.float32) / is_counted_BL.sum(1)[:, None]

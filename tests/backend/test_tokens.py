"""Sequences packed end to end."""

from __future__ import annotations

import numpy as np
import torch

from virnucpro.backend.tokens import mark_tokens, mean_where, pack_tokens, pad_tokens


def test_sequences_lie_end_to_end_in_their_order() -> None:
    rows = np.array([7, 3, 5])
    batch = pack_tokens(rows, [np.array([1, 2], np.int32), np.array([9]), np.array([4, 5, 6])])
    assert batch.token_ids_T.dtype == torch.int64
    assert batch.token_ids_T.tolist() == [1, 2, 9, 4, 5, 6]
    assert batch.lengths_B.tolist() == [2, 1, 3]
    assert batch.max_length == 3
    assert batch.rows is rows


def test_padded_sequences_have_the_mean_of_what_counts() -> None:
    batch = pack_tokens(np.arange(2), [np.array([5, 6, 7]), np.array([8, 9, 10, 11])])
    assert pad_tokens(batch, 1).tolist() == [[5, 6, 7, 1], [8, 9, 10, 11]]
    assert mark_tokens(batch).tolist() == [[True, True, True, False], [True] * 4]
    inner_BL = mark_tokens(batch, 1)
    assert inner_BL.tolist() == [[False, True, False, False], [False, True, True, False]]
    hidden_BLD = torch.tensor([[[1.0], [2.0], [3.0], [torch.nan]], [[4.0], [5.0], [7.0], [9.0]]])
    assert mean_where(hidden_BLD, inner_BL).tolist() == [[2.0], [6.0]]
    assert mean_where(hidden_BLD.half(), inner_BL).dtype == torch.float32

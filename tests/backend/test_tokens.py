"""Sequences packed end to end."""

from __future__ import annotations

import numpy as np
import torch

from virnucpro.backend.tokens import pack_tokens


def test_sequences_lie_end_to_end_in_their_order() -> None:
    rows = np.array([7, 3, 5])
    batch = pack_tokens(rows, [np.array([1, 2], np.int32), np.array([9]), np.array([4, 5, 6])])
    assert batch.token_ids_T.dtype == torch.int64
    assert batch.token_ids_T.tolist() == [1, 2, 9, 4, 5, 6]
    assert batch.lengths_B.tolist() == [2, 1, 3]
    assert batch.max_length == 3
    assert batch.rows is rows

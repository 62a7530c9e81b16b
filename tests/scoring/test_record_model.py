"""What the embeddings of chunks add to the score of a record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from virnucpro.scoring.calls import call_by_logits, call_chunk_logits, call_records
from virnucpro.scoring.record_model import RecordModel, join_embeddings


def test_a_chunk_has_its_dna_and_the_mean_of_its_stretches() -> None:
    generator = np.random.default_rng(0)
    dna = generator.normal(size=(400, 3)).astype(np.float32)
    protein = generator.normal(size=(400, 2, 5)).astype(np.float32)
    is_stretch = np.ones((400, 2), np.bool_)
    # A chunk with one stretch: the other place has zeros.
    is_stretch[7, 1], protein[7, 1] = False, 0
    found = join_embeddings(dna, protein, is_stretch)
    np.testing.assert_array_equal(found[7], [*dna[7], *protein[7, 0]])
    np.testing.assert_allclose(found[8], [*dna[8], *protein[8].mean(0)], rtol=1e-6)


def test_the_more_chunks_the_more_the_weights_count() -> None:
    model = RecordModel(weights=(2.0, 0.5), most_chunks=4)
    np.testing.assert_allclose(model.weigh(np.array([[1.0], [-1.0]])), [2.5, -1.5])
    # Records of 1, 2, 4 and 9 chunks; a chunk of the second has no score.
    first = np.array([0, 1, 4, 8, 17])
    logits = np.full(17, -1.0, np.float32)
    logits[3] = np.nan
    chunks = call_chunk_logits(logits, np.ones(17, np.int64), np.zeros(17, np.int64))
    chunks = chunks._replace(for_record=np.where(np.isnan(logits), np.nan, 3.0))
    records = call_records(chunks, first, np.full(4, 10_000))
    found = call_by_logits(records, chunks, first, model).score
    # Half of ln 4 is ln 2. From four chunks on the weights count in full.
    np.testing.assert_allclose(np.log(found) - np.log1p(-found), [-1, 0.5, 2, 2], rtol=1e-6)
    without = call_by_logits(records, chunks, first).score
    np.testing.assert_allclose(np.log(without) - np.log1p(-without), -1, rtol=1e-6)


@pytest.mark.parametrize(
    "numbers",
    [
        {"weights": [np.inf]},
        {"most_chunks": 1},
        {"most_chunks": 2.5},
    ],
)
def test_impossible_numbers_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a record model"):
        RecordModel(**{"weights": (1.0,), "most_chunks": 20} | numbers)

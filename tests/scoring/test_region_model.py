"""The numbers of a region model, and the evidence that its weights make."""

from __future__ import annotations

import numpy as np
import pytest

from virnucpro.scoring.region_model import RegionModel


def test_the_evidence_of_a_chunk_is_that_of_its_embeddings_alone() -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=8 + 2)
    model = RegionModel(weights=tuple(weights))
    embeddings = generator.normal(size=(400, 8))
    logits = generator.normal(size=400).astype(np.float32)
    found = model.weigh(embeddings, logits)
    assert found[7] == pytest.approx(np.array([*embeddings[7], logits[7], 1]) @ weights)
    alone = [model.weigh(embeddings[[i]], logits[[i]]) for i in range(400)]
    np.testing.assert_array_equal(found, np.concatenate(alone))


@pytest.mark.parametrize(
    "numbers",
    [
        {"most": -1.0},
        {"switch": -1.0},
        {"background": -1.0},
        {"least": np.nan},
        {"weights": [np.inf]},
    ],
)
def test_impossible_numbers_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a region model"):
        RegionModel(**numbers)

"""The numbers of a region model, and the evidence that its weights make."""

from __future__ import annotations

import numpy as np
import pytest

from virnucpro.scoring.region_model import RegionModel


def test_the_evidence_of_a_chunk_is_that_of_its_embeddings_alone() -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=3 + 5 + 2)
    model = RegionModel(weights=tuple(weights))
    dna = generator.normal(size=(400, 3)).astype(np.float32)
    protein = generator.normal(size=(400, 2, 5)).astype(np.float32)
    is_stretch = np.ones((400, 2), np.bool_)
    # A chunk with one stretch: the other place has zeros.
    is_stretch[7, 1], protein[7, 1] = False, 0
    logits = generator.normal(size=400).astype(np.float32)
    found = model.weigh(dna, protein, is_stretch, logits)
    numbers = [*dna[7], *protein[7, 0], logits[7], 1]
    assert found[7] == pytest.approx(np.array(numbers, np.float64) @ weights)
    alone = [model.weigh(dna[[i]], protein[[i]], is_stretch[[i]], logits[[i]]) for i in range(400)]
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

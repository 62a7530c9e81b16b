"""The numbers of a region model."""

from __future__ import annotations

import numpy as np
import pytest

from virnucpro.scoring.region_model import RegionModel


@pytest.mark.parametrize(
    "numbers", [{"most": -1.0}, {"switch": -1.0}, {"background": -1.0}, {"least": np.nan}]
)
def test_impossible_numbers_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a region model"):
        RegionModel(**numbers)

from __future__ import annotations

import numpy as np

from tools.mini.evaluate import measure_kind
from virnucpro.reports.metrics import Predictions


def test_a_viral_kind_is_measured_at_five_percent_of_false_calls() -> None:
    # Two of 40 cellular records may rank above the threshold; the third has 0.935.
    cellular = np.linspace(0.01, 0.985, 40)
    viral = np.array([0.99, 0.97, 0.95, 0.5])
    score = np.concatenate([cellular, viral])
    is_viral = np.arange(44) >= 40
    predictions = Predictions(
        is_viral, score, score, score >= 0.5, np.arange(44), np.ones(44) / np.where(is_viral, 4, 40)
    )
    found = measure_kind("viral/phage", predictions, is_viral)
    assert found["found_at_5_percent"] == 0.75
    assert found["virus"][0] == 1
    assert "found_at_5_percent" not in measure_kind("bacteria/plasmid", predictions, ~is_viral)

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.reports.test_metrics import make_predictions
from tests.runs import read_table
from virnucpro.reports.metrics import METRICS
from virnucpro.reports.report import against_the_rest, measure_subsets, write_report


def test_each_subset_that_has_records_is_measured_after_all_of_them() -> None:
    found = make_predictions(60)
    subsets = [("low", found.score < 0.5), ("none", found.score > 2)]
    everything, low = measure_subsets("test", found, subsets, "records")
    assert [everything.subset, low.subset] == ["all", "low"]
    assert everything.num_viral == found.is_viral.sum() == everything.num_viral_resampled
    assert low.num_viral + low.num_others == (found.score < 0.5).sum()
    assert list(low.estimates) == list(METRICS)


@pytest.mark.parametrize(
    ("members", "name", "chosen"),
    [
        ([0, 1], "class x against all others", [0, 1, 3, 4]),
        ([3], "all viral against class x", [0, 1, 2, 3]),
        ([2, 3], "class x", [2, 3]),
        ([], "class x", []),
    ],
)
def test_a_class_of_one_kind_meets_all_of_the_other(
    members: list[int], name: str, chosen: list[int]
) -> None:
    is_viral = np.array([True, True, True, False, False])
    found = against_the_rest("class x", np.isin(np.arange(5), members), is_viral)
    assert (found[0], np.flatnonzero(found[1]).tolist()) == (name, chosen)


def test_both_files_hold_the_same_figures(tmp_path: Path) -> None:
    found = make_predictions(60)
    sections = measure_subsets("test", found, [("viral", found.is_viral)], "groups")
    write_report(tmp_path, sections, {"about": "toys"})
    document = json.loads((tmp_path / "report.json").read_text())
    assert (document["schema_version"], document["about"]) == (1, "toys")
    rows = read_table(tmp_path / "report.tsv")
    assert len(rows) == len(METRICS) * len(sections)
    written = {
        (section["subset"], name): estimate
        for section in document["sections"]
        for name, estimate in section["estimates"].items()
    }
    assert written["viral", "auroc"] is None
    for row in rows:
        estimate = written[row["subset"], row["metric"]]
        assert row["resampled"] == "groups"
        if estimate is None:
            assert row["value"] == "NA"
        else:
            assert float(row["value"]) == pytest.approx(estimate["value"], rel=1e-5)
            assert (row["low"] == "NA") == (estimate["low"] is None)
    assert math.isnan(sections[1].estimates["auroc"].value)

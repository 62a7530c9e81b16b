from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.reports.test_metrics import make_predictions
from tests.runs import MISSING, change, invoke, read_table
from virnucpro.errors import InputError
from virnucpro.reports.metrics import METRICS
from virnucpro.reports.report import against_the_rest, measure_subsets, read_report, write_report

EVALUATED = {
    **{"predictions": "records.tsv", "truth": "labels.tsv", "num_labels": 60},
    "without_call": {"virus": {}, "others": {"empty": 1}},
}
SPLIT = {"num_groups": 1, "num_records": 1, "num_chunks": 2, "num_frames": 3}
TRAINED = {
    "classifier": {"path": "head.safetensors", "identity": "sha256:0", "metadata": {}},
    "classes": [
        {"class": "phages", "is_viral": True, "num_records": 3, "num_records_without_frames": 0}
        | dict.fromkeys(("train", "valid", "test"), SPLIT)
    ],
    **{"best_epoch": 1, "losses": [{"train": 0.5, "valid": 0.6}], "warnings": []},
}


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


@pytest.mark.parametrize(
    ("about", "place", "value", "message"),
    [
        (TRAINED, ("classifier", "path"), 7, "classifier.path is 7, wanted a text;"),
        (TRAINED, ("losses", 0, "valid"), "x", "losses[0].valid is 'x', wanted a number;"),
        (TRAINED, ("losses",), [], "losses is [], wanted a list of at least 1;"),
        (TRAINED, ("best_epoch",), 2, "best_epoch is 2, and there are losses of 1 epoch;"),
        (TRAINED, ("classes", 0, "test"), MISSING, "lacks classes[0].test;"),
        (TRAINED, ("classes",), MISSING, "lacks classes; wanted the directory of a report of v"),
        (TRAINED, ("warnings",), "x", "warnings is 'x', wanted a list;"),
        (EVALUATED, ("truth",), MISSING, "lacks truth; wanted the directory of a report of virn"),
        (EVALUATED, ("num_labels",), 1.5, "num_labels is 1.5, wanted a whole number of at least"),
        (EVALUATED, ("without_call", "virus"), MISSING, "lacks without_call.virus;"),
        (EVALUATED, ("without_call", "virus"), {"\x1b[2J": -1}, r"virus.'\x1b[2J' is -1, wanted "),
        (EVALUATED, ("sections",), {}, "sections is {}, wanted a list;"),
        (EVALUATED, ("sections", 0, "records"), None, "sections[0].records is None, wanted a te"),
        (
            EVALUATED,
            ("sections", 0, "estimates", "mcc"),
            MISSING,
            "lacks sections[0].estimates.mcc",
        ),
        (EVALUATED, ("sections", 0, "estimates", "mcc"), 1, "mcc is 1, wanted an object, or null"),
        (EVALUATED, ("sections", 0, "num_viral"), True, "num_viral is True, wanted a whole numb"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, about, place, value, message: str) -> None:
    path = tmp_path / "report.json"
    write_report(tmp_path, measure_subsets("test", make_predictions(60), [], "records"), about)
    document = json.loads(path.read_text())
    assert read_report(path) == document
    assert invoke("report", tmp_path, "-o", tmp_path / "whole.html").returncode == 0
    path.write_text(json.dumps(change(document, place, value)))
    with pytest.raises(InputError) as caught:
        read_report(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    done = invoke("report", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "\x1b" not in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_half_an_interval_is_none(tmp_path: Path) -> None:
    write_report(tmp_path, measure_subsets("test", make_predictions(60), [], "records"), EVALUATED)
    document = json.loads((tmp_path / "report.json").read_text())
    half = change(document, ("sections", 0, "estimates", "mcc", "high"), None)
    (tmp_path / "report.json").write_text(json.dumps(half))
    assert invoke("report", tmp_path, "-o", tmp_path / "page.html").returncode == 0
    value = document["sections"][0]["estimates"]["mcc"]["value"]
    assert f'<td class="number">{value:.3f}</td>' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is not JSON (found lists within lists, and so on); wanted the directory"),
        ('{"sections": NaN}', "is not JSON (found NaN)"),
        ("[]", "is []; wanted the directory of a report"),
        ("{}", "lacks schema_version, sections; wanted the directory of a report"),
    ],
)
def test_what_is_no_report_is_explained(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_report(path)
    assert message in str(caught.value)

"""The module for MultiQC, in the real MultiQC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from virnucpro import CallConfig, call

pytestmark = [
    pytest.mark.slow,
    # Not imported here, which takes seconds.
    pytest.mark.skipif(not find_spec("multiqc"), reason="MultiQC is not installed"),
]


@pytest.fixture(scope="module")
def runs(example_run: Path, tmp_path_factory) -> Path:
    """Three runs of the example, called in three ways; the files of one have a prefix."""
    directory = tmp_path_factory.mktemp("multiqc")
    first = directory / "runs" / "gut_predictions"
    shutil.copytree(example_run, first)
    for name, threshold in (("soil_predictions", 0.1), ("sea", 0.99)):
        shutil.copytree(first, directory / "runs" / name)
        call(CallConfig(run_dir=directory / "runs" / name, threshold=threshold))
    (directory / "runs" / "sea" / "run.json").rename(directory / "runs" / "sea" / "deep_run.json")
    # Somebody else's file of the same name.
    (directory / "runs" / "other").mkdir()
    (directory / "runs" / "other" / "run.json").write_text('{"counts": 3}')
    # A file that somebody has changed, which must not cost the report of the others.
    (directory / "runs" / "changed").mkdir()
    document = json.loads((first / "run.json").read_text())
    (directory / "runs" / "changed" / "run.json").write_text(
        json.dumps(document | {"counts": 3}, indent=2)
    )
    return directory / "runs"


@pytest.fixture(scope="module")
def found(runs: Path, repository: Path, tmp_path_factory) -> dict:
    """What MultiQC writes over the three runs, as its file of data."""
    directory = tmp_path_factory.mktemp("out")
    # The entry points as a wheel has them, whatever is installed here.
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    metadata = directory / "plugin" / "virnucpro_plugin-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: virnucpro-plugin\nVersion: 0\n"
    )
    lines = []
    for group in ("multiqc.modules.v1", "multiqc.hooks.v1"):
        lines += [f"[{group}]", *(f"{k} = {v}" for k, v in project["entry-points"][group].items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join(map(str, [directory / "plugin", repository]))
    done = subprocess.run(
        [sys.executable, "-m", "multiqc", str(runs), "-o", str(directory / "out"), "--no-ansi"],
        env={**os.environ, "PYTHONPATH": path, "MULTIQC_NO_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = directory / "out" / "multiqc_data" / "multiqc_data.json"
    return json.loads(data.read_text()) | {
        "page": (directory / "out" / "multiqc_report.html").read_text()
    }


def read_runs(runs: Path) -> dict[str, dict]:
    paths = {
        "gut": "gut_predictions/run.json",
        "soil": "soil_predictions/run.json",
        "deep": "sea/deep_run.json",
    }
    return {name: json.loads((runs / path).read_text()) for name, path in paths.items()}


def test_the_columns_have_the_numbers_of_each_run(runs: Path, found: dict) -> None:
    rows = found["report_general_stats_data"]["virnucpro"]
    documents = read_runs(runs)
    assert set(rows) == set(documents)
    for name, run in documents.items():
        row = rows[name]
        assert row["virus"] == run["counts"]["virus"]
        assert row["share"] == pytest.approx(100 * run["counts"]["virus"] / 9)
    # The three ways of calling differ, so the columns cannot be of one run.
    assert len({run["counts"]["virus"] for run in documents.values()}) == 3


def test_calls_lengths_and_scores_are_drawn(found: dict) -> None:
    plots = found["report_plot_data"]
    assert {"virnucpro_calls", "virnucpro_length", "virnucpro_score", "virnucpro_probability"} <= {
        *plots
    }
    for name in ("calls", "length", "score"):
        assert f"virnucpro-{name}" in found["page"]


def test_another_run_json_is_left_alone(found: dict) -> None:
    assert "other" not in json.dumps(found["report_data_sources"]["virnucpro"])

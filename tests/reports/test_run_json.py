"""Every run.json is compared with its schema before anything of it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runs import MISSING, change, invoke
from virnucpro.errors import InputError
from virnucpro.reports.run_json import read_run_json


@pytest.fixture(scope="module")
def document(example_run: Path) -> dict[str, Any]:
    document = json.loads((example_run / "run.json").read_text())
    backends = document["backends"]
    # As a run with --screen has it.
    document["screen"] = {
        **{"path": "c", "backends": backends, "viral_share": 0.5, "max_loss": 0.01},
        **{"expected_loss": 0.01, "bound": 0.2, "num_records": 3},
        "calibration": document["classifier"]["made_for"]["calibration"],
    }
    return document


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("counts", "virus"), "many", "counts.virus is 'many', wanted a whole number of at least"),
        (("counts", "virus"), True, "counts.virus is True, wanted a whole number of at least 0;"),
        (("counts", "virus"), 1.0, "counts.virus is 1.0, wanted a whole number of at least 0;"),
        (("counts", "virus"), MISSING, "lacks counts.virus; the file was changed"),
        (("counts",), [1], "counts is [1], wanted an object; the file was changed, or is of ano"),
        (("calls", "by"), "x", "calls.by is 'x', wanted 'probability' or 'score';"),
        (("calls", "threshold"), 2, "wanted a number of at least 0 and at most 1, or null;"),
        (("inputs", 0, "path"), 7, "inputs[0].path is 7, wanted a text;"),
        (("backends",), [], "backends is [], wanted a list of at least 2 and at most 2;"),
        (("backends", 1, "alphabet"), "dna", "backends[1].alphabet is 'dna', wanted 'protein';"),
        (("screen", "backends", 0, "alphabet"), "protein", "[0].alphabet is 'protein', wanted 'd"),
        (("settings", "chunk_length_bp"), MISSING, "lacks settings.chunk_length_bp; the file was"),
        (("started_at",), "noon", "started_at is 'noon', wanted a text such as '2026-01-31T"),
        (("histograms", "length", "none"), [1], "histograms.length.none has 1 number, wanted "),
        (("reasons",), {"\x1b[31m": "x"}, r"reasons.'\x1b[31m' is 'x', wanted a whole number of "),
        (("reasons",), {"x" * 1000: "x"}, "reasons.'xxxxxx"),
        (("most_viral",), [{}] * 6, "}], wanted a list of at least 0 and at most 5;"),
        (("schema_version",), True, "schema_version is True, wanted 1;"),
        (("warnings",), "x" * 1000, "warnings is 'xxxxxx"),
        (("settings",), 3, "settings is 3, wanted an object"),
        (("classifier", "made_for", "calibration", "slope"), "x", "calibration.slope is 'x', want"),
    ],
)
def test_the_error_names_the_field(document, tmp_path, place, value, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(change(document, place, value)))
    with pytest.raises(InputError) as caught:
        read_run_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "--resume, which writes it again" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is not JSON (found lists within lists, and so on); wanted the output"),
        ('{"counts": NaN}', "is not JSON (found NaN)"),
        ('{"counts": 1e999}', "is not JSON (found the number '1e999')"),
        ('{"counts": 1' + "0" * 999 + "}", "is not JSON (found the number '1000000"),
        ('{"counts": "\\ud800"}', "is not JSON ('utf-8' codec can't encode"),
        ("7", "is 7; wanted the output directory of a finished virnucpro predict"),
        ("{}", "lacks backends, calls, classifier, counts"),
        ('{"counts": 3}', "lacks backends, calls, classifier, frame_rule"),
        ('{"shard": ["x"]}', "is share ['x'] of a run"),
    ],
)
def test_what_is_no_run_json_is_explained(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_run_json(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("place", [("new",), ("histograms", "new"), ("histograms", "score", "new")])
def test_keys_of_later_versions_are_accepted(document, tmp_path: Path, place) -> None:
    path = tmp_path / "run.json"
    changed = change(document, place, 5)
    path.write_text(json.dumps(changed))
    assert read_run_json(path) == changed


def test_bytes_that_are_no_unicode_stay(document, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(change(document, ("inputs", 0, "path"), "a\udcff.fa")))
    assert read_run_json(path)["inputs"][0]["path"] == "a\udcff.fa"


def test_a_list_longer_than_the_schema_allows_is_refused(document, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(change(document, ("backends",), [*document["backends"]] * 2)))
    with pytest.raises(InputError, match="wanted a list of at least 2 and at most 2;"):
        read_run_json(path)


@pytest.mark.parametrize("command", [("call",), ("report",), ("report", "{run}")])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("counts", "virus"), "\x1b[31m"),
        (("classifier", "made_for"), "\x1b[31m"),
        (("passes",), {"\x1b[31m": 1}),
    ],
)
def test_commands_refuse_a_wrong_field(
    document, example_run, tmp_path, command: tuple[str, ...], place, value
) -> None:
    directory = Path(shutil.copytree(example_run, tmp_path / "run", symlinks=True))
    (directory / "run.json").write_text(json.dumps(change(document, place, value)))
    before = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    done = invoke(*(word.format(run=example_run) for word in command), directory)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "run.json: " in done.stderr
    assert r"\x1b[31m" in done.stderr
    assert "\x1b" not in done.stderr
    assert {path: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before


def test_call_names_a_setting_of_the_run_that_is_wrong(document, example_run, tmp_path) -> None:
    directory = Path(shutil.copytree(example_run, tmp_path / "run", symlinks=True))
    changed = change(document, ("settings", "viral_share"), "half")
    (directory / "run.json").write_text(json.dumps(changed))
    done = invoke("call", directory)
    assert done.returncode == 1
    assert "run.json: settings: viral_share 'half': wanted a share between 0 and 1" in done.stderr

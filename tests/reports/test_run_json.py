"""Every run.json is compared with its schema before anything of it is used."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.runs import invoke
from virnucpro.errors import InputError
from virnucpro.reports.run_json import read_run_json

MISSING = object()
WRONG = (5, -1.5, "x", [], ["x"], {}, {"x": 1}, None, True, 0.25, MISSING)


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


def list_places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if place:
        yield place
    if isinstance(value, dict):
        for name in value:
            yield from list_places(value[name], (*place, name))
    elif isinstance(value, list) and value:
        yield from list_places(value[0], (*place, 0))


def change(document: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    at: Any = changed
    for name in place[:-1]:
        at = at[name]
    if value is MISSING:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return changed


def test_verdicts_are_those_of_jsonschema(document, tmp_path: Path) -> None:
    schema = json.loads(files("virnucpro.reports").joinpath("schemas", "run.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    path = tmp_path / "run.json"
    num_right = num_wrong = 0
    for place in list_places(document):
        # A date, and the number of bins of a histogram: our reader knows more of these.
        if place[0] == "started_at" or (place[0] == "histograms" and len(place) > 2):
            continue
        for value in WRONG:
            changed = change(document, place, value)
            path.write_text(json.dumps(changed))
            is_right = validator.is_valid(changed)
            try:
                assert read_run_json(path) == changed
            except InputError:
                assert not is_right, (place, value)
                num_wrong += 1
            else:
                assert is_right, (place, value)
                num_right += 1
    assert num_right > 300
    assert num_wrong > 1000


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("counts", "virus"), "many", "counts.virus is 'many', wanted a whole number of at least"),
        (("counts", "virus"), True, "counts.virus is True, wanted a whole number of at least 0;"),
        (("counts", "virus"), MISSING, "lacks counts.virus; the file was changed"),
        (("counts",), [1], "counts is [1], wanted an object; the file was changed, or is of ano"),
        (("calls", "by"), "x", "calls.by is 'x', wanted 'probability' or 'score';"),
        (("calls", "threshold"), 2, "calls.threshold is 2, wanted a number from 0 to 1 or null;"),
        (("inputs", 0, "path"), 7, "inputs[0].path is 7, wanted a text;"),
        (("backends",), [], "backends is [], wanted a list of at least 2;"),
        (("started_at",), "noon", "started_at is 'noon', wanted a date and time, such as 2026-01"),
        (("histograms", "length", "none"), [1], "histograms.length.none has 1 numbers, wanted "),
        (("reasons",), {"\x1b[31m": "x"}, r"reasons.'\x1b[31m' is 'x', wanted a whole number of "),
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
    assert "--resume, which writes it anew" in str(caught.value)
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
        ('{"shard": ["x"]}', "is share ['x'] of a run"),
    ],
)
def test_what_is_no_run_json_is_explained(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_run_json(path)
    assert message in str(caught.value)


def test_bytes_that_are_no_unicode_stay(document, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(change(document, ("inputs", 0, "path"), "a\udcff.fa")))
    assert read_run_json(path)["inputs"][0]["path"] == "a\udcff.fa"


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

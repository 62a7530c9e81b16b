"""The published schemas say what a run writes."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from frictionless import Dialect, Resource, Schema
from frictionless.formats import CsvControl

from tests.runs import write_reads
from virnucpro import PredictConfig, predict
from virnucpro.checkpoints.run_directory import RunDirectory, find_run

TABLES = pytest.mark.parametrize("name", ["records", "chunks", "viral_regions"])


def read_schema(name: str) -> dict:
    return json.loads(files("virnucpro.reports").joinpath("schemas", f"{name}.json").read_text())


def find_errors(path: Path, name: str) -> list[str]:
    dialect = Dialect(controls=[CsvControl(delimiter="\t", quote_char="\0")])
    resource = Resource(
        path=path.name,
        basepath=str(path.parent),
        format="csv",
        dialect=dialect,
        schema=Schema.from_descriptor(read_schema(name)),
    )
    report = resource.validate()
    return [message for (message,) in report.flatten(["message"])]


@pytest.fixture(scope="module")
def runs(demo_weights, example_run: Path, tmp_path_factory) -> list[RunDirectory]:
    """A run with a calibration, and one without."""
    directory = tmp_path_factory.mktemp("schemas")
    reads = write_reads(directory / "reads.fa", 60)
    with reads.open("a") as file:
        file.write('>NA\nACGT\n>empty\n>"quoted\n' + "ATG" * 100 + "\n")
    plain = PredictConfig(
        inputs=(str(reads),), output_dir=directory / "plain", device="cpu", **demo_weights
    )
    return [find_run(example_run), predict(plain).directory]


@TABLES
def test_tables_of_a_run_fit_their_schema(runs, name: str) -> None:
    for run in runs:
        assert find_errors(run.path / f"{name}.tsv", name) == []


@TABLES
def test_other_tables_do_not_fit(runs, name: str, tmp_path: Path) -> None:
    lines = (runs[0].path / f"{name}.tsv").read_text().splitlines()
    schema = read_schema(name)
    column = [one["name"] for one in schema["fields"]].index("score")
    cells = lines[1].split("\t")
    for wrong in ("1.5", "high", ""):
        cells[column] = wrong
        (tmp_path / "wrong.tsv").write_text("\n".join([lines[0], "\t".join(cells)]) + "\n")
        assert find_errors(tmp_path / "wrong.tsv", name)
    (tmp_path / "wrong.tsv").write_text(lines[0].replace("score", "skore") + "\n" + lines[1])
    assert find_errors(tmp_path / "wrong.tsv", name)


def test_run_json_fits_its_schema(runs) -> None:
    validator = jsonschema.Draft202012Validator(read_schema("run"))
    for run in runs:
        document = json.loads(run.run_json.read_text())
        validator.validate(document)
        # The schema knows every key.
        assert set(document) == set(validator.schema["properties"]) - {"screen", "shard"}
        for key in ("counts", "calls", "histograms"):
            assert set(document[key]) == set(validator.schema["properties"][key]["properties"])
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(document | {"counts": {"records": -1}})


@pytest.mark.parametrize("name", ["run", "report", "migration"])
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(read_schema(name))


def test_the_docs_have_the_keys_of_run_json(repository: Path) -> None:
    page = (repository / "docs" / "results.md").read_text()
    table = page.partition("| Key | Content |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(documented) == sorted(read_schema("run")["properties"])


@TABLES
def test_the_docs_have_the_columns_of_the_schema(name: str, repository: Path) -> None:
    page = (repository / "docs" / "results.md").read_text()
    section = page.partition(f"\n## {name}.tsv\n")[2].partition("\n## ")[0]
    assert section, f"no section on {name}.tsv"
    table = section.partition("| Column | Meaning |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert documented == [one["name"] for one in read_schema(name)["fields"]]

"""Reading run.json, which any program may have changed: it is compared with its schema first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from virnucpro.checkpoints.run_directory import METRICS_NAME, suggest_runs
from virnucpro.errors import InputError, UsageError, brief, count, first_line
from virnucpro.reports.report import REPORT_NAME

RUN_SCHEMA_VERSION = 1
"""Of run.json, which docs/results.md describes."""

# A share of a run has called nothing, and so lacks these, and the counts of the calls.
_OF_CALLS = {"calls", "counts", "histograms", "most_viral", "reasons", "warnings"}
# The largest integer of most programs. Python would compute with any number of digits.
_MAX_NUMBER = 1 << 63
_REMEDY = (
    "the file was changed, or is of another version of virnucpro. Repeat the `virnucpro predict` "
    "that wrote it with --resume, which writes it anew"
)

# What people call the types of JSON, and the limits that a schema sets.
_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
_LIMITS = {
    "examples": "such as {0[0]!r}",
    "minimum": "of at least {}",
    "maximum": "and at most {}",
    "minItems": "of at least {}",
    "maxItems": "of at most {}",
}


def read_run_json(
    path: Path, command: str = "virnucpro predict", *, is_share: bool = False
) -> dict[str, Any]:
    """Return the run.json of a finished run, all of whose fields have the types of the schema.

    Args:
        path: The file.
        command: What an error says was wanted: a finished run of this command.
        is_share: Whether a share of a run is wanted, and not a run.

    Raises:
        InputError: It cannot be read, is of another version, or a field is missing or wrong.
    """

    def refuse(found: str) -> InputError:
        # Only now, because it searches the directory for other runs.
        wanted = f"wanted the output directory of a finished {command}{suggest_runs(path.parent)}"
        return InputError(f"{path}: {found}; {wanted}")

    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        # A run begins with its metrics, and ends with run.json; a training ends with its report.
        metrics_path = path.with_name(path.name.removesuffix("run.json") + METRICS_NAME)
        is_missing = isinstance(error, FileNotFoundError)
        if is_missing and metrics_path.is_file() and not path.with_name(REPORT_NAME).exists():
            raise InputError(
                f"{path}: is not there, because the run has not finished; `virnucpro monitor` "
                "shows how far it is, and its command with --resume goes on"
            ) from error
        raise refuse(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise refuse(f"is not JSON ({first_line(error)})") from error
    check_schema_version(path, document, RUN_SCHEMA_VERSION)
    # Any JSON may stand in a file of this name.
    if not isinstance(document, dict):
        raise refuse(f"is {brief(document)}")
    if not is_share and "shard" in document:
        raise InputError(
            f"{path}: is share {brief(document['shard'])} of a run; virnucpro merge makes the run "
            "of all shares"
        )
    validator = _make_validator(is_share)
    missing = sorted({*validator.schema["required"]} - document.keys())
    if missing:
        raise refuse(f"lacks {', '.join(missing)}")
    for wrong in validator.iter_errors(document):
        raise InputError(f"{path}: {_explain(wrong)}; {_REMEDY}")
    if not is_share:
        _check_bins(path, document["histograms"])
    return document


@contextmanager
def explaining_settings(path: Path) -> Iterator[None]:
    """Turn the error of a setting that was read from a run.json into one that names the file.

    Raises:
        InputError: A setting is unknown, or has a wrong value.
    """
    try:
        yield
    except (TypeError, UsageError) as error:
        raise InputError(f"{path}: settings: {error}; {_REMEDY}") from error


def parse_json(content: bytes) -> Any:
    """Return what JSON says, with numbers and texts that every program can hold.

    Raises:
        ValueError: It is no JSON, or too deep, or has a number or a text that is none.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"found {name}")

    def read_number(text: str) -> int | float:
        number = float(text) if {*text} & {*".eE"} else int(text)
        if abs(number) >= _MAX_NUMBER:
            raise ValueError(f"found the number {brief(text)}")
        return number

    try:
        document = json.loads(
            content, parse_int=read_number, parse_float=read_number, parse_constant=refuse
        )
    except RecursionError as error:
        raise ValueError("found lists within lists, and so on") from error
    # Half of a pair of surrogates is in no file that we could write.
    json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return document


def check_schema_version(path: Path, document: Any, known: int) -> None:
    """Refuse what another version has written, in which a key may mean something else.

    Raises:
        InputError: The document states another version than the known one.
    """
    found = document.get("schema_version", known) if isinstance(document, dict) else known
    if found != known:
        raise InputError(
            f"{path}: has schema version {brief(found)}, and this virnucpro reads version {known}; "
            "use the version of virnucpro that wrote it"
        )


@cache
def _make_validator(is_share: bool) -> Any:
    """Return what compares a run.json, or that of a share, with the schema."""
    # Commands that read no run.json start sooner without it.
    from jsonschema import Draft4Validator, Draft202012Validator, FormatChecker
    from jsonschema.validators import extend

    path = files("virnucpro.reports").joinpath("schemas", "run.json")
    schema = json.loads(path.read_text("utf-8"))
    if is_share:
        schema["required"] = ["shard", *{*schema["required"]} - _OF_CALLS]
        for name in _OF_CALLS:
            del schema["properties"][name]
    formats = FormatChecker(formats=())
    formats.checks("date-time", (TypeError, ValueError))(datetime.fromisoformat)
    # Since draft 6, 1.0 is an integer. In Python it is none.
    make = extend(Draft202012Validator, type_checker=Draft4Validator.TYPE_CHECKER)
    return make(schema, format_checker=formats)


def _explain(error: Any) -> str:
    """Return in words what is wrong with a field; the file may have any names and values."""
    place = ""
    for step in error.absolute_path:
        if isinstance(step, int):
            place += f"[{step}]"
        else:
            is_plain = step.isidentifier() and len(step) < 50
            place += f".{step if is_plain else brief(step)}"
    place = place.removeprefix(".")
    if error.validator == "required":
        return f"lacks {place}.{min({*error.validator_value} - error.instance.keys())}"
    return f"{place} is {brief(error.instance)}, wanted {_describe(error.schema)}"


def _describe(schema: Mapping[str, Any]) -> str:
    """Return in words what a value must be."""
    if "type" not in schema:
        return " or ".join(map(brief, schema.get("enum", [schema.get("const")])))
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    first, *others = (_TYPES[kind] for kind in kinds)
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    return ", or ".join([" ".join([first, *limits]), *others])


def _check_bins(path: Path, histograms: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that each histogram has a number for each bin.

    Raises:
        InputError: One has not.
    """
    # Other versions may add other keys.
    for histogram, name in product(("length", "probability", "score"), ("virus", "others", "none")):
        found = len(histograms[histogram][name])
        wanted = len(histograms[histogram]["edges"]) - 1
        if found != wanted:
            place = f"histograms.{histogram}.{name}"
            raise InputError(
                f"{path}: {place} has {count(found, 'number')}, wanted {wanted}; {_REMEDY}"
            )

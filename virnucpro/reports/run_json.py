"""Reading run.json, which any program may have changed: it is compared with its schema first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from virnucpro.checkpoints.run_directory import METRICS_NAME, suggest_runs
from virnucpro.errors import InputError, UsageError, brief, first_line
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

# The types of JSON: what Python reads them as, and what people call them.
_TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "object": (dict, "an object"),
    "array": (list, "a list"),
    "string": (str, "a text"),
    "integer": (int, "a whole number"),
    "number": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
    "null": (type(None), "null"),
}


class _FieldError(ValueError):
    """A field is missing or has a wrong value; the message names it."""


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
    schema = _read_schema()
    wanted = {*schema["required"], "shard"} - _OF_CALLS if is_share else {*schema["required"]}
    missing = sorted(wanted - document.keys())
    if missing:
        raise refuse(f"lacks {', '.join(missing)}")
    try:
        for name, value in document.items():
            if name in schema["properties"] and not (is_share and name in _OF_CALLS):
                _check(value, schema["properties"][name], name)
        for name, histogram in {} if is_share else document["histograms"].items():
            _check_bins(histogram, f"histograms.{name}")
    except _FieldError as error:
        raise InputError(f"{path}: {error}; {_REMEDY}") from error
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
def _read_schema() -> dict[str, Any]:
    path = files("virnucpro.reports").joinpath("schemas", "run.json")
    schema: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return schema


def _check(value: Any, schema: Mapping[str, Any], place: str) -> None:
    """Compare a value with its schema, by the words of JSON Schema that ours uses.

    A test compares the verdicts with those of the package jsonschema, which need not be installed.

    Raises:
        _FieldError: The value, or one inside it, is wrong.
    """
    if "$ref" in schema:
        schema = _read_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if not _fits(value, schema):
        raise _FieldError(f"{place} is {brief(value)}, wanted {_describe(schema)}")
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                raise _FieldError(f"lacks {place}.{name}")
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for name, one in value.items():
            # A name of the schema is short and plain. The file may have any other.
            known = name in properties
            inner = f"{place}.{name}" if known else f"{place}.{brief(name)}"
            _check(one, properties.get(name, others), inner)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            _check(one, schema.get("items", {}), f"{place}[{number}]")


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Tell whether a value itself is right; what is inside it is not looked at."""
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        # In Python, true is equal to 1.
        return any(type(value) is type(one) and value == one for one in allowed)
    if not any(_is_of(value, kind) for kind in _list_types(schema)):
        return False
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        size = len(value)
        return bool(schema.get("minItems", size) <= size <= schema.get("maxItems", size))
    if isinstance(value, str) and "pattern" in schema:
        return re.search(schema["pattern"], value) is not None
    if schema.get("format") == "date-time":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return False
    return True


def _list_types(schema: Mapping[str, Any]) -> list[str]:
    kinds = schema.get("type", list(_TYPES))
    return [kinds] if isinstance(kinds, str) else kinds


def _is_of(value: Any, kind: str) -> bool:
    # In Python, a truth value is an integer.
    return isinstance(value, _TYPES[kind][0]) and isinstance(value, bool) <= (kind == "boolean")


def _describe(schema: Mapping[str, Any]) -> str:
    """Return in words what a value must be."""
    if "const" in schema or "enum" in schema:
        return " or ".join(map(brief, schema.get("enum", [schema.get("const")])))
    first, *others = (_TYPES[kind][1] for kind in _list_types(schema))
    if schema.get("format") == "date-time":
        first = "a date and time, such as 2026-01-31T12:00:00+00:00"
    if "pattern" in schema:
        first += f" such as {brief(schema['examples'][0])}"
    for low, high in (("minimum", "maximum"), ("minItems", "maxItems")):
        if low in schema and high in schema:
            first += f" from {schema[low]} to {schema[high]}"
        elif low in schema:
            first += f" of at least {schema[low]}"
        elif high in schema:
            first += f" of at most {schema[high]}"
    return " or ".join([first, *others])


def _check_bins(histogram: Mapping[str, Any], place: str) -> None:
    """Make sure that a histogram has a number for each bin.

    Raises:
        _FieldError: It has not.
    """
    num_bins = len(histogram["edges"]) - 1
    for name, numbers in histogram.items():
        if name != "edges" and len(numbers) != num_bins:
            raise _FieldError(f"{place}.{name} has {len(numbers)} numbers, wanted {num_bins}")

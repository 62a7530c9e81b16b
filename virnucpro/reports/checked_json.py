"""Reads JSON that any program may have changed, and compares it with its schema first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from virnucpro.errors import InputError, brief, first_line

# The largest integer of most programs. Python would compute with any number of digits.
_MAX_NUMBER = 1 << 63

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
    "maxItems": "and at most {}",
}

Refuse = Callable[[str], InputError]
"""Returns the error that says what a file is, and what was wanted instead of it."""


def read_object(path: Path, version: int, refuse: Refuse) -> dict[str, Any]:
    """Return the object in a file of JSON, whose fields may still be anything.

    Args:
        path: The file.
        version: The schema version that this virnucpro reads.
        refuse: Makes the error of a file of another kind.

    Raises:
        InputError: It cannot be read, is of another version, or is no object.
    """
    try:
        document = _parse(path.read_bytes())
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise refuse(f"is not JSON ({first_line(error)})") from error
    # Any JSON may stand in a file of this name.
    if not isinstance(document, dict):
        raise refuse(f"is {brief(document)}")
    # In another version, a key may mean something else.
    found = document.get("schema_version", version)
    if found != version:
        raise InputError(
            f"{path}: has schema version {brief(found)}, and this virnucpro reads version "
            f"{version}; use the version of virnucpro that wrote it"
        )
    return document


def load_schema(name: str) -> dict[str, Any]:
    """Return a schema of the package, such as that of `run.json`."""
    path = files("virnucpro.reports").joinpath("schemas", name)
    schema: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return schema


def make_validator(schema: dict[str, Any]) -> Any:
    """Return what compares a document with a schema."""
    # Commands that read no such file start sooner without it.
    from jsonschema import Draft4Validator, Draft202012Validator, FormatChecker
    from jsonschema.validators import extend

    formats = FormatChecker(formats=())
    formats.checks("date-time", (TypeError, ValueError))(datetime.fromisoformat)
    # Since draft 6, 1.0 is an integer. In Python it is none.
    make = extend(Draft202012Validator, type_checker=Draft4Validator.TYPE_CHECKER)
    return make(schema, format_checker=formats)


def check_fields(
    path: Path, document: Mapping[str, Any], validator: Any, refuse: Refuse, remedy: str
) -> None:
    """Compare a document with its schema.

    Args:
        path: Its file.
        document: What the file holds.
        validator: That of the schema.
        refuse: Makes the error of a document that lacks keys, because it may be of another kind.
        remedy: What to do about a field that is wrong.

    Raises:
        InputError: A field is missing, or has a wrong type or value.
    """
    for wrong in validator.iter_errors(document):
        if wrong.validator == "required" and wrong.instance is document:
            raise refuse(f"lacks {', '.join(_find_missing(wrong))}")
        raise InputError(f"{path}: {_explain(wrong)}; {remedy}")


def _parse(content: bytes) -> Any:
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
        return f"lacks {place}.{_find_missing(error)[0]}"
    return f"{place} is {brief(error.instance)}, wanted {_describe(error.schema)}"


def _find_missing(error: Any) -> list[str]:
    return sorted({*error.validator_value} - error.instance.keys())


def _describe(schema: Mapping[str, Any]) -> str:
    """Return in words what a value must be."""
    if "type" not in schema:
        return " or ".join(map(brief, schema.get("enum", [schema.get("const")])))
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    first, *others = (_TYPES[kind] for kind in kinds)
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    return ", or ".join([" ".join([first, *limits]), *others])

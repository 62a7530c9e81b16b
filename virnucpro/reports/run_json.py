"""Reading run.json of a finished run, or of a share of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from virnucpro.checkpoints.run_directory import METRICS_NAME, suggest_runs
from virnucpro.errors import InputError, UsageError, brief, count
from virnucpro.reports.checked_json import check_fields, load_schema, make_validator, read_object
from virnucpro.reports.report import REPORT_NAME

RUN_SCHEMA_VERSION = 1
"""Of run.json, which docs/results.md describes."""

# A share of a run has called nothing, and so lacks these, and the counts of the calls.
_OF_CALLS = {"calls", "counts", "histograms", "most_viral", "reasons", "warnings"}
_REMEDY = (
    "the file was changed, or is of another version of virnucpro. Repeat the `virnucpro predict` "
    "that wrote it with --resume, which writes it again"
)


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

    # A run begins with its metrics, and ends with run.json; a training ends with its report.
    metrics_path = path.with_name(path.name.removesuffix("run.json") + METRICS_NAME)
    has_begun = metrics_path.is_file() and not path.with_name(REPORT_NAME).exists()
    if has_begun and not path.exists():
        raise InputError(
            f"{path}: is not there, because the run has not finished; `virnucpro monitor` shows "
            "how far it is, and its command with --resume continues it"
        )
    document = read_object(path, RUN_SCHEMA_VERSION, refuse)
    if not is_share and "shard" in document:
        raise InputError(
            f"{path}: is share {brief(document['shard'])} of a run; virnucpro merge makes the run "
            "of all shares"
        )
    check_fields(path, document, _make_validator(is_share), refuse, _REMEDY)
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


@cache
def _make_validator(is_share: bool) -> Any:
    """Return what compares a run.json, or that of a share, with the schema."""
    schema = load_schema("run.json")
    if is_share:
        schema["required"] = ["shard", *{*schema["required"]} - _OF_CALLS]
        for name in _OF_CALLS:
            del schema["properties"][name]
    return make_validator(schema)


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

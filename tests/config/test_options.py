"""One statement of a setting: its names, its default for people, and the values it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from virnucpro.config import COMMANDS, command_options
from virnucpro.config.options import Config, argument, option, options_of
from virnucpro.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Base(Config, group="Output"):
    """The settings of a base."""

    seed: int = option(0, help="Random seed.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Example(Base, group="Training"):
    """The settings of an example."""

    inputs: tuple[str, ...] = argument(help="Files.", path="input")
    share: float = option(0.5, help="A share.", within="share")
    compile: str = option("auto", help="Whether.", choices=("auto", "on", "off"))
    keep: bool = option(True, "-k", help="Keep.", details="For ever.")
    output_dir: Path | None = option(None, help="Where.", unset="here", path="new directory")


def test_options_know_their_names_groups_and_defaults() -> None:
    options = options_of(Example)
    assert list(options) == ["inputs", "share", "compile", "keep", "output_dir", "seed"]
    assert options["keep"].long_name == "--keep"
    assert options["keep"].negative_name == "--no-keep"
    assert options["output_dir"].long_name == "--output-dir"
    assert [one.group for one in options.values()] == ["Arguments", *["Training"] * 4, "Output"]
    assert [one.metavar for one in options.values()] == [None, None, None, None, "DIR", "N"]
    assert [one.default_text for one in options.values()] == ["", "0.5", "auto", "on", "here", "0"]


def test_the_docstring_lists_settings_with_their_help() -> None:
    assert Example.__doc__ is not None
    assert "    keep: Keep. For ever.\n" in Example.__doc__
    assert "    seed: Random seed.\n" in Example.__doc__


def test_values_become_the_type_of_their_field() -> None:
    config = Example(inputs="a.fa", output_dir="out", share=0.25, compile=True)
    assert config.inputs == ("a.fa",)
    assert config.output_dir == Path("out")
    assert config.compile == "on"  # YAML reads on as true
    assert config.settings()["output_dir"] == "out"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed -1: wanted a whole number, at least 0"),
        ({"seed": True}, "seed True: wanted a whole number"),
        ({"seed": 1.5}, r"seed 1\.5: wanted a whole number"),
        ({"share": 1}, "share 1: wanted a share between 0 and 1"),
        ({"compile": "maybe"}, "compile 'maybe': wanted one of auto, on, off"),
        ({"keep": 1}, "keep 1: wanted true or false"),
        ({"inputs": 3}, "inputs 3: wanted a list"),
        ({"output_dir": 1.5}, r"output_dir 1\.5: wanted a path"),
        ({"output_dir": ""}, "output_dir '': wanted a path that is not empty"),
        ({"inputs": ("a.fa", "")}, r"inputs .*: wanted text that is not empty"),
    ],
)
def test_an_invalid_value_is_refused_by_its_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Example(**{"inputs": ("a.fa",)} | settings)


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("seed", np.int64(3), 3),
        ("share", np.float64(0.25), 0.25),
        ("share", np.float32(0.25), 0.25),
    ],
)
def test_numbers_of_numpy_are_numbers(name: str, given: Any, wanted: float) -> None:
    found = getattr(Example(inputs=("a.fa",), **{name: given}), name)
    assert (found, type(found)) == (wanted, type(wanted))


def test_what_is_no_settings_is_refused() -> None:
    config = Example(inputs=("a.fa",))
    Example.require(config)
    for given, shown in (("a.fa", "'a.fa'"), ({"inputs": "a.fa"}, "{'inputs': 'a.fa'}")):
        wanted = f"found {shown}; wanted settings, as in Example(inputs=...)"
        with pytest.raises(UsageError, match=re.escape(wanted)):
            Example.require(given)


def test_the_sentences_of_the_help_have_a_subject() -> None:
    # `Looked for in ...` or `Needs a ...` does not say who does it; commands such as `Use ...` do.
    verbs = "Looked|Required|Used|Computed|Measured|Kept|Needs|Replaces|Overrides|Takes|Requires"
    lacks_subject = re.compile(rf"(?:^|\. )((?:{verbs})\b.*)")
    found = [
        (command, name, match[1])
        for command in COMMANDS
        for name, one in command_options(command).items()
        if (match := lacks_subject.search(f"{one.help} {one.details}"))
    ]
    assert found == []

"""Settings files: YAML with a section for each command, whose keys are names of options."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from virnucpro.config import COMMANDS, Option, command_options
from virnucpro.config.options import REQUIRED
from virnucpro.errors import UsageError, brief, first_line, on_one_line

# A template with all options has some kilobytes. A file of gigabytes is a mistake.
_MAX_BYTES = 1 << 20
# Of one value: the longest path that Linux knows.
_MAX_LETTERS = 4_096


class Key(NamedTuple):
    """A key of a settings file.

    Attributes:
        target: What its value is filed under.
        convert: Returns the value, or raises a ValueError that says what is wanted; None for a key
            whose value nobody reads.
    """

    target: str
    convert: Callable[[Any], Any] | None


def command_keys() -> dict[str, Key]:
    """Return the keys of all commands by dotted name: `predict.chunk-length-bp`."""
    keys = {}
    for command in COMMANDS:
        section = command.replace(" ", ".")
        for name, option in command_options(command).items():
            if not option.is_argument:
                # Older names, too: a settings file must outlive the renaming of an option.
                names = (option.long_name, *option.aliases)
                for long_name in (one[2:] for one in names if one.startswith("--")):
                    keys[f"{section}.{long_name}"] = Key(f"{section}.{name}", option.convert)
    return keys


def read_settings(path: Path, known: Mapping[str, Key]) -> dict[str, Any]:
    """Return the values in the YAML file at `path` by the targets of their keys.

    Names may have hyphens or underscores. A key without a value counts as absent.

    Args:
        path: The file.
        known: The keys by dotted name.

    Raises:
        UsageError: The file cannot be read, or has an unknown key or a wrong value.
    """
    try:
        with path.open("rb") as file:
            # One byte more tells a file that is too long without reading the rest.
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UsageError(f"{path}: has more than {_MAX_BYTES:,} bytes, so it holds no settings")
        loader = _Loader(content.decode("utf-8"))
        # Nodes, and not values: only nodes know their line, which an error must name.
        root = loader.get_single_node()
        found = _SectionReader(path, loader, known).walk(root) if root is not None else ()
        return {name: value for name, value in found if value is not None}
    except yaml.MarkedYAMLError as error:
        # The text of the whole error repeats the line, with arrows, over several lines.
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(
            f"{path}{line}: cannot be read as YAML ({error.problem}); `virnucpro utils "
            "generate-config` writes a file to begin with"
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML ({on_one_line(error)})") from error


class _Loader(yaml.SafeLoader):
    """Reads values whose size and time a small file cannot multiply."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` as it is, which is refused then: each level of aliases would double it."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return the text of a value.

        Raises:
            ConstructorError: It is too long; a long number takes time by the square.
        """
        if len(node.value) > _MAX_LETTERS:
            problem = f"found a value of {len(node.value):,} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)


class _SectionReader:
    """Reads the nodes of one file."""

    def __init__(self, path: Path, loader: yaml.SafeLoader, known: Mapping[str, Key]) -> None:
        self._path = path
        self._loader = loader
        self._keys = {_normalize(name): key for name, key in known.items()}
        # With all their beginnings, because a section may be mistyped as well as a key.
        self._names = dict.fromkeys(
            ".".join(parts[:stop])
            for parts in (name.split(".") for name in known)
            for stop in range(1, len(parts) + 1)
        )
        self._seen: set[str] = set()
        self._sections = {_normalize(name) for name in self._names} - self._keys.keys()

    def walk(self, section: yaml.Node, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield the target and the value of each key below `section`."""
        is_mapping = isinstance(section, yaml.MappingNode)
        # A tag would ask for another type than a mapping, even for an object of Python.
        if not is_mapping or section.tag != "tag:yaml.org,2002:map":
            is_scalar = isinstance(section, yaml.ScalarNode)
            found = brief(section.value) if is_scalar else "a tag" if is_mapping else "a list"
            raise UsageError(f"{self._place(section)}: found {found}, wanted `key: value` lines")
        for key_node, node in section.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UsageError(f"{self._place(key_node)}: found a list as a key, wanted a name")
            name = f"{prefix}{key_node.value}"
            normalized = _normalize(name)
            if normalized in self._sections:
                self._note(normalized, name, key_node)
                # A section may be empty: in the template, every line of it is a comment.
                if node.tag != "tag:yaml.org,2002:null":
                    yield from self.walk(node, f"{name}.")
            elif normalized in self._keys:
                target = self._keys[normalized].target
                self._note(target, name, key_node)
                yield target, self._read(name, key_node, node)
            else:
                place = self._place(key_node)
                raise UsageError(f"{place}: unknown key {brief(name)}{self._suggest(name)}")

    def _note(self, what: str, name: str, key_node: yaml.Node) -> None:
        """Refuse what comes twice: YAML itself would forget the first without a word."""
        if what in self._seen:
            raise UsageError(f"{self._place(key_node)}: {name} is there twice; keep one of the two")
        self._seen.add(what)

    def _read(self, name: str, key_node: yaml.Node, node: yaml.Node) -> Any:
        convert = self._keys[_normalize(name)].convert
        # Nobody reads this value, so it need not make sense.
        if convert is None:
            return node.value
        try:
            value = self._loader.construct_object(node, deep=True)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            # YAML's constructors let through what Python says of 2026-13-45 or `!!int x`.
            raise UsageError(
                f"{self._place(node)}: {name} is {brief(node.value)}, which YAML cannot read "
                f"({first_line(error)}); put text into quotes"
            ) from error
        if value is None:
            return None
        try:
            return convert(value)
        except ValueError as error:
            raise UsageError(
                f"{self._place(key_node)}: {name} is {brief(value)}, wanted {error}"
            ) from error

    def _place(self, node: yaml.Node) -> str:
        return f"{self._path}, line {node.start_mark.line + 1}"

    def _suggest(self, name: str) -> str:
        # A key may also have been put into another section.
        prefix, _, last = name.rpartition(".")
        others = [other for other in self._names if not name.startswith(f"{other}.")]
        # Cut, because the time of the comparison grows with the square of the length.
        near = difflib.get_close_matches(name[:80], others, n=1) or [
            other for other in self._names if other.rpartition(".")[2] == last
        ]
        if near:
            return f"; did you mean {near[0]!r}?"
        level = _normalize(prefix)
        beside = [one for one in self._names if _normalize(one.rpartition(".")[0]) == level]
        return f"; known are {', '.join(sorted(beside))}"


def _normalize(name: str) -> str:
    return name.replace("-", "_")


def make_template() -> str:
    """Return a settings file in which each option is explained, with its default behind a #."""
    lines = [
        "# Settings of virnucpro: virnucpro -c THIS_FILE COMMAND ...",
        "# To use a line, remove its # and change the value. The command line overrides this file.",
    ]
    groups: tuple[str, ...] = ()
    for command in COMMANDS:
        options = [one for one in command_options(command).values() if not one.is_argument]
        if not options:
            continue
        *above, last = command.split()
        lines.append("")
        # `models list` and `models download` share the section `models`.
        if above and tuple(above) != groups:
            lines.append(f"{above[0]}:")
        groups = tuple(above)
        indent = "  " * len(above)
        lines.append(f"{indent}{last}:")
        for option in options:
            lines += [f"{indent}  {line}" for line in _describe(option)]
    return "\n".join(lines) + "\n"


def _describe(option: Option) -> list[str]:
    """Return the lines of the template for one option."""
    text = option.help
    if option.choices:
        text += f" One of {', '.join(option.choices)}."
    if option.unset:
        text += f" Default: {option.unset}."
    # A default that depends on other settings would be wrong as a fixed value.
    value = None if option.default is REQUIRED or option.unset else option.default
    # JSON knows no paths, and what JSON writes is YAML as well.
    if isinstance(value, Path):
        value = str(value)
    written = "" if value in (None, ()) else f" {json.dumps(value)}"
    return [
        *(f"# {line}" for line in textwrap.wrap(text, 90)),
        f"#{option.long_name[2:]}:{written}",
    ]

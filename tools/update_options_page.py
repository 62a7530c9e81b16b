"""Write the tables of options in docs/command-line.md from the settings of the commands.

Usage: python -m tools.update_options_page
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from virnucpro.config import Option, command_options
from virnucpro.config.calls import PRESETS
from virnucpro.config.options import REQUIRED
from virnucpro.config.shared import ATTENTIONS
from virnucpro.legacy.options import FORK_OPTIONS

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"

_TABLE = re.compile(r"(<!-- options of (?P<command>[a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Of --preset, --attention and --model-type, as texts of other options name them.
_VALUES = "|".join((*PRESETS, *ATTENTIONS, "mini"))


def main() -> None:
    """Bring the page up to date."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PAGE.write_text(fill_in(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def fill_in(page: str) -> str:
    """Return the page with the table of each command between the marks for it."""

    def write(found: re.Match[str]) -> str:
        command = found["command"]
        lines = _fork_table() if command == "the fork" else _command_table(command)
        return "".join([found[1], *(f"{line}\n" for line in lines), found[3]])

    return _TABLE.sub(write, page)


def _command_table(command: str) -> Iterator[str]:
    """Yield the lines of a table; options that predict has as well come last, in one line."""
    yield from ("| option | default | meaning |", "|---|---|---|")
    known = command_options("predict") if command != "predict" else {}
    shared: list[str] = []
    for name, option in command_options(command).items():
        if option.is_argument:
            continue
        if option == known.get(name):
            shared += [*_list_names(option), *(f"`{flag}`" for flag in option.shorthands)]
            continue
        meaning = f"{option.help} {option.details}".rstrip()
        if option.choices:
            meaning += f" One of {', '.join(f'`{choice}`' for choice in option.choices)}."
        default = "required" if option.default is REQUIRED else option.default_text
        yield _make_row(", ".join(_list_names(option)), default, meaning)
        for flag, value in option.shorthands.items():
            yield _make_row(f"`{flag}`", "", f"The same as {option.long_name} {value}.")
    if shared:
        yield _make_row(", ".join(shared), "", "As for `predict`.")


def _fork_table() -> Iterator[str]:
    yield from ("| option | meaning |", "|---|---|")
    for option in FORK_OPTIONS:
        names = [f"`{name}`" for part in option.names for name in part.split("/")]
        meaning = option.meaning or f"No effect: {option.why}."
        yield f"| {', '.join(names)} | {_mark_options(meaning)} |"


def _list_names(option: Option) -> list[str]:
    """Return all names of an option, the one that takes its place in `--help` with its value."""
    short = [name for name in option.aliases if not name.startswith("--")]
    long = [name for name in option.aliases if name.startswith("--")]
    value = f" {option.metavar}" if option.metavar else ""
    negative = [option.negative_name] if option.negative_name else []
    return [f"`{name}`" for name in (*short, f"{option.long_name}{value}", *negative, *long)]


def _make_row(names: str, default: str, meaning: str) -> str:
    return f"| {names} | {default} | {_mark_options(meaning)} |".replace("|  |", "| |")


def _mark_options(text: str) -> str:
    """Return text with the options in it, and values that follow them, as code."""
    return re.sub(rf"(?<![`\w-])--[a-z][a-z-]*( ({_VALUES})\b)?", r"`\g<0>`", text)


if __name__ == "__main__":
    main()

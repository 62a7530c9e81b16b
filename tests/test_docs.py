"""What the pages say: links lead somewhere, commands exist, and tutorials print what they show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from virnucpro.cli.main import main

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]

PAGES = [
    *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *(
        REPOSITORY / name / "README.md"
        for name in ("containers", "examples", "recipe", "tools", "tools/mini")
    ),
    REPOSITORY / "virnucpro" / "checkpoints" / "FORMAT.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NUMBER = re.compile(r"\d+\.\d{4,}")


@cache
def find_anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub and mkdocs.yml give to the headings of a page."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", _LINK.sub("]", heading)) for heading in headings]
    return frozenset(heading.strip().lower().replace(" ", "-") for heading in words)


def find_broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading of a page."""
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        is_there = target.is_relative_to(REPOSITORY) and target.exists()
        if not is_there or (anchor and anchor not in find_anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert not find_broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A `b.c` d\n[1](#a-bc-d) [2](page.md#e) [3](none.md) [4](https://x.org/y)\n")
    assert find_broken_links(page) == ["page.md#e", "none.md"]


def find_damage(text: str) -> list[str]:
    """Return the lines that GitHub and the site show in different ways, or not as they are meant.

    The site nests a list only by four spaces, and GitHub ends a cell of a table at each bar.
    """
    text = _FENCE.sub("", text)
    nested = re.findall(r"^ {1,3}[-*] .*", text, re.MULTILINE)
    indented = re.findall(r"(?<=\n\n) {1,3}\S.*", text)
    rows = re.findall(r"^\|.*", text, re.MULTILINE)
    return nested + indented + [row for row in rows if re.search(r"`[^`|]*\|[^`]*` *\|", row)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_page_looks_as_it_is_meant(page: Path) -> None:
    assert not find_damage(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("line", ["  - an item", " A paragraph", "| `a|b` | c |"])
def test_a_line_that_looks_wrong_is_found(line: str) -> None:
    assert set(find_damage(f"Text:\n\n| `a` | `b` |\n\n{line}\n")) == {line}


def find_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line in the code blocks of a page."""
    fenced = "\n".join(block[2] for block in _FENCE.findall(text))
    indented = "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE))
    for line in re.sub(r"\\\n", " ", f"{fenced}\n{indented}").split("\n"):
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        # Other lines have quotation marks that do not end.
        if re.match(r"\s*(virnucpro|python -m) ", line):
            yield list(words)


def parse(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse a command line; files that it reads are made empty first.

    Raises:
        click.UsageError: There is no such command, option, choice or number of arguments.
    """
    try:
        ctx = command.make_context(command.name, list(words), parent=parent)
    except click.exceptions.Exit:
        return
    except click.BadParameter as error:
        missing = re.fullmatch(r"(?:File|Path) '(.+)' does not exist\.", error.message)
        if missing is None:
            raise
        path = Path(missing[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        parse(command, words, parent)
        return
    if isinstance(command, click.Group):
        # The attribute goes with click 9, where `args` has all words.
        _, inner, rest = command.resolve_command(
            ctx, [*getattr(ctx, "_protected_args", ()), *ctx.args]
        )
        assert inner is not None
        parse(inner, rest, ctx)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_of_a_page_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in find_commands(page.read_text(encoding="utf-8")):
        # A backslash that does not end its line: two lines of a command were joined.
        assert not any(word.startswith(" ") for word in words), words
        is_end = [bool(re.fullmatch(r"[|&;<>()]+", word)) for word in words]
        # The page of commands also shows their general form.
        if words[0] == "virnucpro" and "COMMAND" not in words:
            parse(main, words[1 : [*is_end, True].index(True)])


@pytest.mark.parametrize(
    "line",
    [
        "virnucpro predict a.fa --no-such-option",
        "virnucpro models download 500 virnucpro predict a.fa -m 500",
        "virnucpro monitor RUN_DIR the same view",
        "virnucpro predict a.fa -m none",
        "virnucpro no-such-command",
    ],
)
def test_a_command_that_does_not_exist_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = find_commands(f"Text:\n\n    {line} > out  # a remark\n\nText.\n")
    with pytest.raises(click.UsageError):
        parse(main, words[1 : words.index(">")])


def test_the_architecture_names_every_module() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.partition("    virnucpro/\n")[2].partition("\n    backends/")[0]
    rooms = dict(
        re.findall(r"^      (\w+)/ +(.*?)(?=^      \w|\Z)", tree, re.MULTILINE | re.DOTALL)
    )
    # The page describes the others by their commands, or as a whole.
    for room in set(rooms) - {"cli", "workflows", "kernels", "config", "data"}:
        names = {path.stem for path in (REPOSITORY / "virnucpro" / room).glob("[!_]*.py")}
        assert names <= set(re.findall(r"\w+", rooms[room])), room


def test_the_page_on_packages_lists_every_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    page = (REPOSITORY / "docs" / "packages.md").read_text(encoding="utf-8")
    always, _, rest = page.partition("## Extras")
    listed = re.findall(r"^\| ([\w-]+) \|", always, re.MULTILINE)
    assert listed[2:] == [re.split(r"[<>=]", one)[0] for one in project["dependencies"]]
    listed_extras = re.findall(r"^\| `([\w-]+)` \| ([\w, -]+) \|", rest, re.MULTILINE)
    wanted = {
        name: ", ".join(re.split(r"[<>=]", one)[0] for one in packages)
        for name, packages in extras.items()
        if name not in ("docs", "dev")
    }
    assert dict(listed_extras[: len(wanted)]) == wanted
    backends = re.findall(r"^\| `([\w-]+)` \|", rest.partition("## Backends")[2], re.MULTILINE)
    assert set(backends) == set(project["entry-points"]["virnucpro.backends"])


@pytest.mark.parametrize("page", ["tutorial.md", "tutorial-assembly.md"])
def test_a_tutorial_shows_what_its_commands_print(tmp_path: Path, page: str) -> None:
    """Each `text` block is part of what the `sh` or `python` block before it prints."""
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "virnucpro"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m virnucpro "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/backends",
        "CUDA_VISIBLE_DEVICES": "",
    }
    tutorial = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    blocks = _FENCE.findall(tutorial)
    assert {"sh", "text"} <= {language for _, language, _ in blocks}
    printed = ""
    for _, language, text in blocks:
        if language in ("sh", "python"):
            interpreter = ["bash", "-e"] if language == "sh" else [sys.executable]
            printed = subprocess.run(
                [*interpreter, "-c", text],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            ).stdout
        elif language == "text":
            # The last digits depend on the processor.
            assert _NUMBER.sub("N", text) in _NUMBER.sub("N", printed)
            shown = [float(number) for number in _NUMBER.findall(text)]
            actual = [float(number) for number in _NUMBER.findall(printed)]
            assert all(any(abs(a - b) < 1e-4 for b in actual) for a in shown)

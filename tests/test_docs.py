"""The links of the pages lead somewhere, and the tutorial's commands print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    REPOSITORY / "examples" / "README.md",
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
    """Each `text` block is part of what the `sh` block before it prints."""
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
        if language == "sh":
            printed = subprocess.run(
                ["bash", "-e", "-c", text],
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

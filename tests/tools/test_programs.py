"""The programs in tools/: the README lists them all, and they still fit the package."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY

FOLDERS = (REPOSITORY / "tools", REPOSITORY / "tools" / "mini")


def module_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_readme_lists_every_file(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)(?:\.py)?` \|", text, re.MULTILINE)) == module_names(
        folder
    )


@pytest.mark.parametrize(
    "module",
    [
        ".".join(folder.relative_to(REPOSITORY).parts) + f".{name}"
        for folder in FOLDERS
        for name in module_names(folder)
    ],
)
def test_a_program_finds_what_it_imports_and_describes_itself(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {
        "tools.benchmark_kernels": "triton",
        "tools.docs_settings": "griffe",
        "tools.docs_site": "mkdocs",
    }
    if module in needed:
        pytest.importorskip(needed[module], reason=f"needs {needed[module]}")
    main = getattr(importlib.import_module(module), "main", None)
    if main is None:
        return
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    assert capsys.readouterr().out.startswith("usage: ")

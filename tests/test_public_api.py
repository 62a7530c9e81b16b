"""What docs/python.md shows is what runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import virnucpro

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(repository: Path) -> str:
    """All examples of the page, which together make one program."""
    text = (repository / "docs" / "python.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_the_documented_program_runs(program: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(repository / "examples")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"\d of 9 records are viral", lines[0])
    fasta = (repository / "examples" / "example.fasta").read_text()
    ids = re.findall(r"^>(\S+)", fasta, re.MULTILINE)
    assert [line.split()[0] for line in lines[1:10]] == ids
    assert {line.split()[1] for line in lines[1:10]} <= {"virus", "others"}
    assert re.fullmatch(rf"{re.escape(ids[0])} (virus|others) 0\.\d+", lines[10])
    assert lines[11] == f"(9, 128) {ids[0]} dnabert-s fp32"
    assert lines[12] == "these results are there already"
    assert re.fullmatch(r"protein embeddings: (\d+) of \1 sequences", lines[-1])
    assert "INFO:virnucpro.runtime.run:scores and tables: " in done.stderr
    assert (tmp_path / "demo" / "python" / "viral.fasta").is_file()


def test_the_public_names_are_there_and_no_others() -> None:
    assert {getattr(virnucpro, name).__name__ for name in virnucpro.__all__} == set(
        virnucpro.__all__
    )
    assert set(virnucpro.__all__) <= set(dir(virnucpro))
    with pytest.raises(AttributeError, match="has no attribute 'predictt'"):
        virnucpro.predictt  # noqa: B018

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY


@pytest.mark.slow
def test_headers_come_out_as_they_were_read(tmp_path: Path) -> None:
    content = b">a\xff of many\nACGTACGT\n>c\nGGG\n"
    (tmp_path / "in.fa").write_bytes(content)
    command = [sys.executable, "-m", "tools.sample_records", tmp_path / "in.fa"]
    whole = subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    assert whole.stdout == content
    cut = [*command, "--max-length", "5", "-n", "1"]
    found = subprocess.run(cut, check=True, capture_output=True, cwd=REPOSITORY).stdout
    assert found in (b">a\xff of many\nACGTA\n", b">c\nGGG\n")

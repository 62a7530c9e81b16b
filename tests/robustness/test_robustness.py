"""The short form of the programs that damage files and kill runs; they fail where one is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "arguments",
    [
        "break_files --kinds yaml inputs metrics zstd bam cram --attempts 14",
        "break_files --kinds parts store weights safetensors configs classifier adapters "
        "--attempts 1",
        "kill_runs --kills 1 --stories predict,2",
    ],
)
def test_nothing_is_silent_crashes_or_differs(arguments: str) -> None:
    program, *rest = arguments.split()
    command = [sys.executable, "-m", f"tests.robustness.{program}", *rest]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

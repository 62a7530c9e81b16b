"""Nothing outlives a process that was killed: not its workers, not the processes of a launch."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.runs import VIRNUCPRO, predict_options, wait_for, wait_until_embedding, write_reads

pytestmark = [pytest.mark.slow, pytest.mark.launch]

# Some of them end by themselves after minutes.
_PATIENCE_SECONDS = 20.0


def start(tmp_path: Path, *options: object, **variables: str) -> subprocess.Popen[str]:
    reads = write_reads(tmp_path / "reads.fa", 3000)
    command = [*VIRNUCPRO, "predict", reads, "-o", tmp_path / "out", "--dnabert-batch-size=100"]
    return subprocess.Popen(
        list(map(str, [*command, *options])),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )


def kill(process: subprocess.Popen[str]) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=_PATIENCE_SECONDS)
    commands = [one.cmdline() for one in alive]
    for one in alive:
        one.kill()
    _, messages = process.communicate()
    assert commands == []
    assert "This is a bug" not in messages


def test_workers_end_with_their_process(demo_weights, tmp_path):
    # A socket below this directory would have too long a path.
    long = tmp_path / ("x" * 100)
    long.mkdir()
    options = ["--dataloader-workers=2", *predict_options(demo_weights)]
    process = start(tmp_path, *options, TMPDIR=str(long))
    wait_until_embedding(tmp_path / "out", process)
    leader = psutil.Process(process.pid)
    wait_for(lambda: len(leader.children(recursive=True)) >= 4, process)
    kill(process)


def test_processes_end_with_their_launcher_while_they_embed(demo_weights, tmp_path):
    process = start(tmp_path, "--num-processes=2", *predict_options(demo_weights))
    wait_until_embedding(tmp_path / "out", process)
    kill(process)


def test_processes_end_with_their_launcher_while_they_import(demo_weights, tmp_path):
    process = start(tmp_path, "--num-processes=2", *predict_options(demo_weights))
    while len(psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None, process.communicate()[1]
    kill(process)

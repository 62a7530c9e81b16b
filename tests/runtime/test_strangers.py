"""What strangers can do from the working directory and from the network: nothing that counts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from tests.runs import REPOSITORY, assert_tables_equal_but_for_rounding, write_reads
from virnucpro import PredictConfig, predict
from virnucpro.errors import OutputError

PLANTED = "open({!r}, 'a').write(__name__ + '\\n')\nraise ImportError(__name__)\n"
PROGRAM = (sys.executable, str(REPOSITORY / "virnucpro"))
BATCH_OPTIONS = ("--dnabert-batch-size=150", "--esm-batch-size=150")


def plant(directory: Path) -> Path:
    """Write modules that must not be imported, and return the file that they would write."""
    traces = directory / "imported"
    planted = ("click", "random", "signal", "struct", "multiprocessing", "torch", "numpy")
    for name in planted:
        (directory / f"{name}.py").write_text(PLANTED.format(str(traces)))
    (directory / "virnucpro").mkdir()
    (directory / "virnucpro/__init__.py").write_text(PLANTED.format(str(traces)))
    return traces


def meet_in(pid: int) -> int:
    """Wait until a launch listens, check that it does so on this machine only, return the port."""
    launcher = psutil.Process(pid)
    while True:
        assert launcher.is_running()
        found = [one.laddr for one in launcher.net_connections("inet") if one.status == "LISTEN"]
        if found:
            assert {address.ip for address in found} == {"127.0.0.1"}
            return found[0].port
        time.sleep(0.05)


def write_into_store(port: int) -> None:
    """Say that five batches of each pass are claimed, and publish what is no sample."""
    from torch.distributed import TCPStore

    store = TCPStore(
        "127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    for number in range(2):
        prefix = "default_pg/0//virnucpro"
        store.add(f"{prefix}/claims/{number}", 5)
        for rank in range(3):
            store.set(f"{prefix}/monitor/{number}/{rank}", '["\x1b"]')


@pytest.mark.launch
def test_a_launch_takes_nothing_from_strangers(tmp_path: Path):
    reads = write_reads(tmp_path / "reads.fa", 120)
    traces = plant(tmp_path)
    command = [*PROGRAM, "predict", str(reads), "-m", "mini", "-d", "cpu", "-o", "out"]
    options = ["--num-processes=2", "--dataloader-workers=1", *BATCH_OPTIONS]
    with subprocess.Popen(
        [*command, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as run:
        write_into_store(meet_in(run.pid))
        for each in psutil.Process(run.pid).children(recursive=True):
            listening = [one for one in each.net_connections("inet") if one.status == "LISTEN"]
            assert {one.laddr.ip for one in listening} <= {"127.0.0.1"}
        _, told = run.communicate()
    assert run.returncode == 0, told
    assert not traces.exists()
    assert re.findall(r"(\d+) batches are left over", told) == ["5", "5"]
    assert "bug" not in told
    predict(PredictConfig(inputs=(str(reads),), model_type="mini", output_dir=tmp_path / "alone"))
    assert_tables_equal_but_for_rounding(tmp_path / "out", tmp_path / "alone")


@pytest.mark.slow
def test_python_m_takes_nothing_from_the_working_directory(tmp_path: Path):
    traces = plant(tmp_path)
    (tmp_path / "virnucpro/__init__.py").unlink()
    (tmp_path / "virnucpro").rmdir()
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/backends"}
    command = [sys.executable, "-m", "virnucpro", "frames", "--help"]
    # Python itself imports these before it gives our program the word.
    for name in ("random", "signal", "struct"):
        (tmp_path / f"{name}.py").unlink()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not traces.exists()


@pytest.mark.slow
def test_a_run_writes_through_no_link(tmp_path: Path):
    reads, out, victim = tmp_path / "reads.fa", tmp_path / "out", tmp_path / "victim"
    write_reads(reads, 20)
    config = PredictConfig(inputs=(str(reads),), model_type="mini", output_dir=out, device="cpu")
    predict(config)
    written = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    for path in out.rglob("*.json*"):
        path.unlink()
    victim.write_text("mine")
    temporary = [name.with_name(f".{name.name}.tmp") for name in written]
    # Lines are appended to these two, and nothing but a link is in their place.
    logs = [Path("run.log"), Path("metrics.jsonl")]
    for name in {Path(".launch"), *temporary, *written} - {*logs, Path(".lock")}:
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(victim)
    predict(replace(config, resume=True))
    assert victim.read_text() == "mine"
    for name in logs:
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(victim)
        with pytest.raises(OutputError, match=f"{name}: is a link"):
            predict(replace(config, resume=True))
        predict(replace(config, force=True))
        assert victim.read_text() == "mine"

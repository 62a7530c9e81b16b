"""What every command shares: the lock, and the clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from virnucpro.config import ComputeConfig
from virnucpro.errors import UsageError
from virnucpro.runtime.locks import locked
from virnucpro.runtime.run import open_run


@pytest.mark.slow
def test_a_second_run_is_kept_away(tmp_path: Path) -> None:
    script = "import sys, virnucpro.runtime.locks as r\nwith r.locked(r.Path(sys.argv[1])): pass"
    other = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with locked(tmp_path / ".lock"):
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert f"{tmp_path}: another run is going on here" in refused.stderr
    assert subprocess.run(other, check=False).returncode == 0


def test_not_even_one_process_does_two_runs_in_one_place(tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(UsageError, match="another run is going on here; wait for it"),
        locked(tmp_path / ".lock"),
    ):
        pytest.fail("two held the lock")
    with locked(tmp_path / ".lock"):
        pass


def test_a_run_keeps_the_seconds_of_its_stages() -> None:
    with open_run(ComputeConfig(device="cpu")) as run, run.stage("one"), run.stage("two"):
        pass
    assert list(run.stages) == ["two", "one"]
    assert 0 <= run.stages["two"] <= run.stages["one"] <= run.seconds
    assert run.started_at.utcoffset() is not None


def test_a_run_of_one_process_is_its_own_main_process() -> None:
    calls = []
    with open_run(ComputeConfig(device="cpu")) as run:
        run.once(lambda: calls.append(run.rank))
        assert (run.is_main, run.num_processes, calls) == (True, 1, [0])
        assert (run.gather("mine"), run.share("all")) == (["mine"], "all")
        count = run.make_counter()
        assert [count(), count()] == [0, 1]
        assert run.precision == "fp32"

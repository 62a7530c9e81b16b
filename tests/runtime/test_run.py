"""What every command shares: the clock, and the other processes."""

from __future__ import annotations

from virnucpro.config import ComputeConfig
from virnucpro.runtime.run import open_run


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

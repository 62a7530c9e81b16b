"""The counters of a process that is alone; test_launch.py has those of several processes."""

from __future__ import annotations

from accelerate import Accelerator

from virnucpro.runtime.claims import launch_store, make_counter


def test_each_counter_of_a_process_alone_counts_from_0() -> None:
    accelerator = Accelerator(cpu=True)
    assert launch_store(accelerator) is None
    first, second = make_counter(accelerator), make_counter(accelerator)
    assert [first(), first(), second(), first()] == [0, 1, 0, 2]

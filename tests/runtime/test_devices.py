"""What a device is told before anything computes on it."""

from __future__ import annotations

import platform
import sys

import pytest

from tests.runs import run

# In a process of its own: what a heap that others have used looks like is chance.
PROGRAM = """
import resource
import torch
from virnucpro.runtime.devices import keep_freed_memory

def count_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for num_mib in range(5, 25):  # each larger than what malloc has learned to keep
        torch.ones(num_mib << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

untold = count_page_faults()
keep_freed_memory()
print(untold * resource.getpagesize() >> 20, count_page_faults() * resource.getpagesize() >> 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    done = run(sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    untold, told = map(int, done.stdout.split())
    assert untold > 250  # MiB: all of 5 to 24 are mapped anew
    assert told < 60

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
from virnucpro.devices import keep_freed_memory

num_numbers = 4 << 20  # 16 MiB of float32
num_pages = 4 * num_numbers // resource.getpagesize()

def count_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(num_numbers) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

untold = count_page_faults()
keep_freed_memory()
print(untold / num_pages, count_page_faults() / num_pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    done = run(sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    untold, told = map(float, done.stdout.split())
    assert untold > 60  # most of four times twenty tensors are mapped anew
    assert told < 12

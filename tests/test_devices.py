"""What a device is told before anything computes on it."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from virnucpro.devices import keep_freed_memory

NUM_NUMBERS = 4 << 20  # 16 MiB of float32
NUM_PAGES = 4 * NUM_NUMBERS // resource.getpagesize()


def count_page_faults(num_tensors: int) -> int:
    """Return the page faults of making and freeing one tensor after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_tensors):
        torch.ones(NUM_NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    keep_freed_memory()
    assert count_page_faults(num_tensors=20) < 4 * NUM_PAGES  # where each is mapped anew: 20

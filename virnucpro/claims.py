"""The counter that hands out batches among the processes of a launch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch.distributed
from accelerate import Accelerator

_numbers = itertools.count()


def make_counter(accelerator: Accelerator) -> Callable[[], int]:
    """Return a function that counts 0, 1, 2, ... over all processes: each number goes to one call.

    Every process must make its counters in the same order. With several processes the count is kept
    by the store in which they met (torch's, hosted by the launcher or by the first process), and a
    call is one message there and back; nobody waits for another process.
    """
    number = next(_numbers)
    if accelerator.num_processes == 1:
        return itertools.count().__next__
    # The group's own store, which torch gives no public name; it starts empty after a restart.
    store = torch.distributed.distributed_c10d._get_default_store()
    return lambda: store.add(f"virnucpro/claims/{number}", 1) - 1

"""What the processes of a launch share beside collectives: a store, and a counter in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed
from accelerate import Accelerator

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_numbers = itertools.count()


def make_counter(accelerator: Accelerator) -> Callable[[], int]:
    """Return a function that counts 0, 1, 2, ... over all processes: each number goes to one call.

    Every process must make its counters in the same order. With several processes the count is kept
    by the store in which they met (torch's, hosted by the launcher or by the first process), and a
    call is one message there and back; nobody waits for another process.
    """
    number = next(_numbers)
    store = launch_store(accelerator)
    if store is None:
        return itertools.count().__next__
    return lambda: store.add(f"virnucpro/claims/{number}", 1) - 1


def launch_store(accelerator: Accelerator) -> Store | None:
    """Return the store in which the processes of a launch met; None if this process is alone."""
    if accelerator.num_processes == 1:
        return None
    # The group's own, which torch gives no public name; it starts empty after a restart.
    store: Store = torch.distributed.distributed_c10d._get_default_store()
    return store

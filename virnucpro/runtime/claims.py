"""What the processes of a launch share besides collectives: a store, and counters in it.

Processes claim batches with a counter. They work at different speeds, so in the loop there must be
no collective, in which all would wait for the slowest.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed
from accelerate import Accelerator

from virnucpro.errors import first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

_numbers = itertools.count()


def make_counter(accelerator: Accelerator) -> Callable[[], int]:
    """Return a function that counts 0, 1, 2, ... over all processes: one call gets each number.

    With several processes, the launch's store counts. A call sends it one message and waits for the
    answer, but never for another process. Every process must make its counters in the same order.
    Without an answer the counter has come to its end.
    """
    # The order gives each counter the same key in every process.
    number = next(_numbers)
    store = launch_store(accelerator)
    if store is None:
        # Alone, no store is needed, and none exists.
        return itertools.count().__next__
    key = f"virnucpro/claims/{number}"

    def claim() -> int:
        try:
            # `add` is atomic in the server: two processes never get the same number.
            return int(store.add(key, 1)) - 1
        # torch's stores have no narrower error.
        except RuntimeError as error:
            # No error: what was computed is kept, and the end of the pass finds what is missing.
            logger.warning("the store of the launch gives no more batches (%s)", first_line(error))
            # Beyond every list, so this process ends its loop. The others do the rest.
            return sys.maxsize

    return claim


def launch_store(accelerator: Accelerator) -> Store | None:
    """Return the store of the launch; None if this process is alone.

    It is the key-value server of torch.distributed, through which the processes first found each
    other. The launcher or the first process hosts it.
    """
    if accelerator.num_processes == 1:
        return None
    # torch has no public name for it. A new launch has a new store, so counters start at 0 again.
    store: Store = torch.distributed.distributed_c10d._get_default_store()
    return store

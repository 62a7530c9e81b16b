"""A process of a launch that does nothing but count batches, until a file named `stop` appears.

monitored_process.py RANK NUM_PROCESSES PORT METRICS_PATH
"""

import sys
import time
from pathlib import Path

from torch.distributed import TCPStore

from virnucpro.runtime.monitoring import Monitor, PassStatus, Place
from virnucpro.runtime.monitoring.judge import Limits

rank, num_processes, port = map(int, sys.argv[1:4])
metrics_path = Path(sys.argv[4])
store = TCPStore("127.0.0.1", port)


def wait_for_everyone(name: str) -> None:
    store.add(name, 1)
    while store.add(name, 0) < num_processes:
        time.sleep(0.01)


with Monitor(
    metrics_path,
    Place(rank=rank),
    num_processes=num_processes,
    store=store,
    interval_seconds=0.05,
    limits=Limits(stalled_seconds=1.0),
) as monitor:
    status = PassStatus("toy embeddings", total_rows=10_000, total_cost=100_000, budget_tokens=10)
    monitor.begin_pass(status)
    status.begin_loop()
    while not metrics_path.with_name("stop").exists():
        time.sleep(0.01)
        status.count_batch(num_rows=1, num_tokens=10, cost=10)
    status.end_loop()
    monitor.publish()
    wait_for_everyone("pass")
    monitor.end_pass()
wait_for_everyone("end")

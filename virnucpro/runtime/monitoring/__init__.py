"""Watching a run: what each process does is counted, published, judged and read back.

The loop counts in a `PassStatus`; a `Monitor` in each process publishes that, and the main process
writes all of it to metrics.jsonl, which is the only thing that a view of a run reads (`RunState`).
Nothing here imports torch: `virnucpro monitor` is to start at once.
"""

from virnucpro.runtime.monitoring.monitor import Monitor
from virnucpro.runtime.monitoring.run_state import RunState
from virnucpro.runtime.monitoring.status import PassStatus, Place, ProgressListener, Sample

__all__ = ["Monitor", "PassStatus", "Place", "ProgressListener", "RunState", "Sample"]

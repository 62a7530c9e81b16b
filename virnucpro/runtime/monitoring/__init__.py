"""Watches a run: counts what each process does, publishes it, judges it, and reads it back.

The loop counts into a `PassStatus`. A `Monitor` in each process publishes it as a `Sample`, and the
main process writes all samples to metrics.jsonl. A view of a run reads only this file (`RunState`).
Nothing here imports torch, so that `virnucpro monitor` starts at once.
"""

from virnucpro.runtime.monitoring.monitor import Monitor
from virnucpro.runtime.monitoring.run_state import RunState
from virnucpro.runtime.monitoring.status import (
    PassStatus,
    Place,
    ProgressListener,
    Sample,
    TrainingStatus,
    describe_speed,
)

__all__ = [
    "Monitor",
    "PassStatus",
    "Place",
    "ProgressListener",
    "RunState",
    "Sample",
    "TrainingStatus",
    "describe_speed",
]

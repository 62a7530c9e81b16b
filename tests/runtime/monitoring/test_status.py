"""The counters of a pass, and the line that they become."""

from __future__ import annotations

import json

from tests.samples import make_sample
from virnucpro.runtime.monitoring import PassStatus, Place, Sample
from virnucpro.runtime.monitoring.gpu import GpuReading


def test_a_sample_survives_json():
    sample = Sample.take(PassStatus("toy"), Place(), GpuReading(97, 1, 2, 700.1, 61))
    assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


def test_a_line_has_the_documented_keys_in_their_order():
    line = make_sample(50).to_json()
    assert list(line) == [
        *("time", "rank", "host", "pid", "device", "pass_name", "state"),
        *("total_rows", "total_cost", "budget_tokens"),
        *("num_rows", "num_tokens", "num_batches", "cost"),
        *("load_seconds", "loop_seconds", "data_seconds", "device_seconds", "disk_seconds"),
        *("tokens_per_second", "batch_fill", "gpu"),
    ]


def test_run_json_counts_rows_that_failed_apart():
    status = PassStatus("toy embeddings", budget_tokens=10)
    status.begin_loop()
    status.count_batch(num_rows=3, num_tokens=9, cost=9)
    status.failed_rows.append(7)
    status.end_loop()
    written = status.to_run_json()
    assert list(written) == [
        *("num_rows", "num_tokens", "failed_rows", "budget_tokens", "load_seconds"),
        *("loop_seconds", "data_seconds", "device_seconds", "disk_seconds"),
        *("peak_memory_bytes", "compiled"),
    ]
    assert (written["num_rows"], written["failed_rows"], status.num_rows) == (2, [7], 3)


def test_clocks_stop_with_the_loop():
    status = PassStatus("toy embeddings")
    status.begin_loop()
    status.count_batch(1, 1, 1)
    during = Sample.take(status, Place(), None)
    status.end_loop()
    after, later = (Sample.take(status, Place(), None) for _ in range(2))
    assert status.load_seconds > 0
    assert during.loop_seconds <= after.loop_seconds == later.loop_seconds
    never = PassStatus("toy embeddings")
    never.end_loop()
    assert never.load_seconds > 0 == never.loop_seconds

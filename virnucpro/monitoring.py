"""What each process is doing: counted by the loop, published and shown by others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class PassStatus:
    """One process in one pass. The loop counts here, any thread may read.

    Attributes:
        name: Of the pass, for people.
        total_rows: Rows that all processes have to embed.
        total_cost: What these cost, in tokens.
        budget_tokens: Of a batch, in this process.
        state: `loading`, `embedding`, `waiting` (for the other processes), or `done`.
        num_rows: Rows that this process has handed to the writer.
        num_tokens: Their tokens, special ones included.
        num_batches: Their batches.
        cost: What they cost by the plan, in tokens; compares with `total_cost`.
        data_seconds: Waited for the loader.
        device_seconds: The writer waited for the device; on a CPU, the time in the encoder.
        disk_seconds: Time in writing parts.
        last_batch_at: When a batch was last handed over, by `time.monotonic`.
    """

    name: str
    total_rows: int
    total_cost: int
    budget_tokens: int
    state: str = "loading"
    num_rows: int = 0
    num_tokens: int = 0
    num_batches: int = 0
    cost: int = 0
    data_seconds: float = 0.0
    device_seconds: float = 0.0
    disk_seconds: float = 0.0
    began_at: float = field(default_factory=time.monotonic)
    last_batch_at: float = field(default_factory=time.monotonic)

    def count_batch(self, num_rows: int, num_tokens: int, cost: int) -> None:
        """Count a batch that was handed to the writer."""
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.num_batches += 1
        self.cost += cost
        self.last_batch_at = time.monotonic()


ProgressListener = Callable[[PassStatus], None]
"""Called after each batch of this process, in the thread that embeds."""

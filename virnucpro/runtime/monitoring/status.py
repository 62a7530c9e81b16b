"""What one process is doing: counted by the loop, and as a line of metrics.jsonl."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from virnucpro.runtime.monitoring.gpu import GpuReading


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
        device_seconds: The device computed.
        disk_seconds: Time in writing parts, beside the device's work.
    """

    name: str
    total_rows: int = 0
    total_cost: int = 0
    budget_tokens: int = 0
    state: str = "loading"
    num_rows: int = 0
    num_tokens: int = 0
    num_batches: int = 0
    cost: int = 0
    data_seconds: float = 0.0
    device_seconds: float = 0.0
    disk_seconds: float = 0.0
    _began_at: float = field(default_factory=time.monotonic)
    _loop_began_at: float | None = None
    _loop_ended_at: float | None = None

    def begin_loop(self) -> None:
        """Note that the first batch is there."""
        self._loop_began_at = time.monotonic()
        self.state = "embedding"

    def count_batch(self, num_rows: int, num_tokens: int, cost: int) -> None:
        """Count a batch that was handed to the writer."""
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.num_batches += 1
        self.cost += cost

    def end_loop(self) -> None:
        """Note that the last part is written; the other processes may still be at work."""
        self._loop_ended_at = time.monotonic()
        self.state = "waiting"

    @property
    def load_seconds(self) -> float:
        """From the start of the pass to the first batch."""
        return (self._loop_began_at or self._loop_ended_at or time.monotonic()) - self._began_at

    @property
    def loop_seconds(self) -> float:
        """From the first batch to the last part, or until now."""
        if self._loop_began_at is None:
            return 0.0
        return (self._loop_ended_at or time.monotonic()) - self._loop_began_at


ProgressListener = Callable[[PassStatus], None]
"""Called after each batch of this process, in the thread that embeds."""


@dataclass(frozen=True)
class Place:
    """Which process this is, and where.

    Attributes:
        rank: Its number in the launch; 0 is the main process.
        device: The GPU's name, or `cpu`.
    """

    rank: int = 0
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    device: str = "cpu"

    def __str__(self) -> str:
        return f"process {self.rank} ({self.device} on {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Sample:
    """A process at one moment of a pass: a line of metrics.jsonl.

    The counters are those of `PassStatus`, from the start of the pass on.

    Attributes:
        time: By the main process's clock, in seconds since 1970.
        tokens_per_second: Since the process's sample before.
        batch_fill: What batches cost, as a share of the budget, over the pass.
        gpu: The process's own GPU; None without one, or without NVIDIA's library.
    """

    time: float
    rank: int
    host: str
    pid: int
    device: str
    pass_name: str
    state: str
    total_rows: int
    total_cost: int
    budget_tokens: int
    num_rows: int
    num_tokens: int
    num_batches: int
    cost: int
    load_seconds: float
    loop_seconds: float
    data_seconds: float
    device_seconds: float
    disk_seconds: float
    tokens_per_second: float = 0.0
    batch_fill: float = 0.0
    gpu: GpuReading | None = None

    @property
    def place(self) -> Place:
        """Which process it was."""
        return Place(self.rank, self.host, self.pid, self.device)

    def since(self, before: Sample | None) -> Sample:
        """Return the same sample with the throughput since an earlier one of this process."""
        tokens, seconds = self.num_tokens, self.loop_seconds
        if before is not None:
            tokens, seconds = tokens - before.num_tokens, seconds - before.loop_seconds
        return dataclasses.replace(
            self, tokens_per_second=round(tokens / seconds, 1) if seconds > 0 else 0.0
        )

    def to_json(self) -> dict[str, Any]:
        """Return what JSON is made of."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Sample:
        """Return the sample of a line; keys that a later version has added do not matter.

        Raises:
            TypeError: A key is missing.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in line.items() if name in names}
        if known.get("gpu") is not None:
            known["gpu"] = GpuReading(**known["gpu"])
        return cls(**known)


def take_sample(status: PassStatus, place: Place, gpu: GpuReading | None) -> Sample:
    """Return what a process is doing now."""
    most_cost = status.num_batches * status.budget_tokens
    return Sample(
        time=time.time(),
        **dataclasses.asdict(place),
        pass_name=status.name,
        state=status.state,
        total_rows=status.total_rows,
        total_cost=status.total_cost,
        budget_tokens=status.budget_tokens,
        num_rows=status.num_rows,
        num_tokens=status.num_tokens,
        num_batches=status.num_batches,
        cost=status.cost,
        load_seconds=round(status.load_seconds, 3),
        loop_seconds=round(status.loop_seconds, 3),
        data_seconds=round(status.data_seconds, 3),
        device_seconds=round(status.device_seconds, 3),
        disk_seconds=round(status.disk_seconds, 3),
        batch_fill=round(status.cost / most_cost, 3) if most_cost else 0.0,
        gpu=gpu,
    )

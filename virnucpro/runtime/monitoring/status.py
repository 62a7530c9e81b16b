"""What one process does in one pass: counted by the loop, and kept as a line of metrics.jsonl."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from virnucpro.errors import brief, count, format_seconds, printable
from virnucpro.runtime.monitoring.gpu import GpuReading

_COUNTERS = (
    *("state", "total_rows", "total_cost", "budget_tokens"),
    *("num_rows", "num_tokens", "num_batches", "cost"),
    *("load_seconds", "loop_seconds", "data_seconds", "device_seconds", "disk_seconds"),
)
_MAX_NUMBER = 1 << 63
_RUN_JSON_KEYS = (
    *("num_rows", "num_tokens", "failed_rows", "budget_tokens", "load_seconds", "loop_seconds"),
    *("data_seconds", "device_seconds", "disk_seconds", "peak_memory_bytes", "compiled"),
)


@dataclass
class PassStatus:
    """The counters of one process in one pass. The loop writes them; any thread may read them.

    Attributes:
        name: The name of the pass, for people.
        total_rows: Rows that all processes together have to embed.
        total_cost: The cost of these rows, in tokens.
        budget_tokens: The tokens that a batch of this process may have.
        state: `loading`, `embedding`, `waiting` (for the other processes), or `done`.
        num_rows: Rows that this process has finished, failed ones included.
        num_tokens: The tokens of these rows, special ones included.
        num_batches: The batches of these rows.
        cost: The cost of these rows by the plan, in tokens; compare it with `total_cost`.
        load_seconds: Time from the start of the pass to the first batch.
        loop_seconds: Time from the first batch to the last part on disk.
        data_seconds: Time of the loop in which it waited for the loader.
        device_seconds: Time of the loop in which the device computed.
        disk_seconds: Time in which parts were written; the device goes on meanwhile.
        failed_rows: Rows that do not fit the device's memory, even alone.
        peak_memory_bytes: Maximum memory that was allocated on the GPU; 0 on a CPU.
        compiled: Whether torch.compile compiled the encoder.
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
    load_seconds: float = 0.0
    loop_seconds: float = 0.0
    data_seconds: float = 0.0
    device_seconds: float = 0.0
    disk_seconds: float = 0.0
    failed_rows: list[int] = field(default_factory=list)
    peak_memory_bytes: int = 0
    compiled: bool = False
    # A copy takes both clocks along, so that it can be read like the original.
    _began_at: float = field(default_factory=time.monotonic, repr=False, compare=False)
    _loop_began_at: float = field(default=0.0, repr=False, compare=False)

    def begin_loop(self) -> None:
        """Note that the first batch has arrived."""
        self.read_clock()
        # The clock is set before the state: the monitor's thread may read between the two.
        self._loop_began_at = time.monotonic()
        self.state = "embedding"

    def count_batch(self, num_rows: int, num_tokens: int, cost: int) -> None:
        """Count a batch that was handed to the writer."""
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.num_batches += 1
        self.cost += cost
        self.read_clock()

    def end_loop(self) -> None:
        """Note that the last part is written; other processes may still be working."""
        self.read_clock()
        self.state = "waiting"

    def read_clock(self) -> None:
        """Bring the seconds of the present state up to now."""
        if self.state == "loading":
            self.load_seconds = time.monotonic() - self._began_at
        elif self.state == "embedding":
            self.loop_seconds = time.monotonic() - self._loop_began_at

    @property
    def batch_fill(self) -> float:
        """The cost of the batches as a share of their budget, over the pass."""
        budget = self.num_batches * self.budget_tokens
        return round(self.cost / budget, 3) if budget else 0.0

    def to_run_json(self) -> dict[str, Any]:
        """Return what run.json says about the process at the end of the pass."""
        # For progress, a failed row is finished; in run.json only embedded rows count.
        embedded = {"num_rows": self.num_rows - len(self.failed_rows)}
        return {name: getattr(self, name) for name in _RUN_JSON_KEYS} | embedded


def describe_speed(processes: Sequence[PassStatus]) -> str:
    """Return one line about a pass that is over, from the counters of all its processes."""

    def total(name: str) -> Any:
        return sum(getattr(one, name) for one in processes)

    # The pass takes as long as the slowest. A process that had nothing to do has spent no time.
    longest = max(one.loop_seconds for one in processes)
    seconds = total("loop_seconds") or 1
    return (
        f"{processes[0].name}: {count(total('num_rows'), 'row')} in {format_seconds(longest)}, "
        f"{total('num_tokens') / (longest or 1):,.0f} tokens/s, device busy "
        f"{100 * total('device_seconds') / seconds:.0f} % of the time, waiting for data "
        f"{100 * total('data_seconds') / seconds:.0f} %"
    )


UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a line raises that no process of ours has written."""

ProgressListener = Callable[[PassStatus], None]
"""Called after each batch of this process, in the thread that embeds."""


@dataclass(frozen=True)
class Place:
    """Which process this is, and where it runs.

    Attributes:
        rank: Its number in the launch; 0 is the main process.
        device: The name of the GPU, or `cpu`.
    """

    rank: int = 0
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    device: str = "cpu"

    def __str__(self) -> str:
        return f"process {self.rank} ({self.device} on {self.host}, pid {self.pid})"


@dataclass(kw_only=True)
class Sample(PassStatus):
    """The counters of a process at one moment: a line of metrics.jsonl.

    Attributes:
        time: The time by the main process's clock, in seconds since 1970.
        tokens_per_second: The throughput since the previous sample of this process.
        gpu: The process's own GPU; None without a GPU, or without NVIDIA's library.
    """

    time: float
    rank: int
    host: str
    pid: int
    device: str
    tokens_per_second: float = 0.0
    gpu: GpuReading | None = None

    @classmethod
    def take(
        cls, status: PassStatus, place: Place, gpu: GpuReading | None, before: Sample | None = None
    ) -> Sample:
        """Return what a process is doing now; `before` is its previous sample in the pass."""
        # A copy of all counters, because the loop goes on counting while the sample is written.
        sample = cls(**vars(status), time=time.time(), **asdict(place), gpu=gpu)
        sample.read_clock()
        # Milliseconds keep the lines short.
        for name in _COUNTERS:
            if name.endswith("_seconds"):
                setattr(sample, name, round(getattr(sample, name), 3))
        tokens, seconds = sample.num_tokens, sample.loop_seconds
        if before is not None:
            tokens, seconds = tokens - before.num_tokens, seconds - before.loop_seconds
        sample.tokens_per_second = round(tokens / seconds, 1) if seconds > 0 else 0.0
        return sample

    @property
    def place(self) -> Place:
        """Which process it was."""
        return Place(self.rank, self.host, self.pid, self.device)

    def to_json(self) -> dict[str, Any]:
        """Return the values of a line, as docs/monitoring.md describes them."""
        line = {"time": self.time} | asdict(self.place) | {"pass_name": self.name}
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return (
            line
            | counters
            | {
                "tokens_per_second": self.tokens_per_second,
                "batch_fill": self.batch_fill,
                "gpu": self.gpu and asdict(self.gpu),
            }
        )

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Sample:
        """Return the sample of a line. Keys that a later version has added are ignored.

        The line may come from anybody: from a file, or through the store of a launch.

        Raises:
            Exception: One of `UNREADABLE`: the line is not what a process writes.
        """
        values: dict[str, Any] = {}
        for name in ("host", "device", "state"):
            values[name] = read_text(line[name])
        for name in ("time", "rank", "pid", "tokens_per_second", *_COUNTERS):
            if name not in values:
                values[name] = read_number(line[name])
        gpu = None
        if line["gpu"] is not None:
            # By our own fields, because a later version may write more.
            found = {field.name: line["gpu"].get(field.name) for field in fields(GpuReading)}
            known = {name: read_number(value) for name, value in found.items() if value is not None}
            gpu = GpuReading(**known)
        return cls(read_text(line["pass_name"]), **values, gpu=gpu)


@dataclass(frozen=True)
class TrainingStatus:
    """How far a fine-tuning is, and how good.

    Attributes:
        step: The steps that are done.
        num_steps: The steps that are wanted.
        share_done: How much of them, or of the minutes that are wanted, is over.
        loss: The mean loss of the chunks since the last evaluation.
        valid: The held-out loss at the last evaluation; None before the first one.
        auroc: The held-out AUROC then.
    """

    step: int
    num_steps: int
    share_done: float
    loss: float
    valid: float | None = None
    auroc: float | None = None

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> TrainingStatus:
        """Return what a line of metrics.jsonl says.

        Raises:
            Exception: One of `UNREADABLE`: the line is not what a process writes.
        """
        later = (line[name] for name in ("valid", "auroc"))
        return cls(
            *(read_number(line[name]) for name in ("step", "num_steps", "share_done", "loss")),
            *(None if value is None else read_number(value) for value in later),
        )


def read_number(value: Any) -> Any:
    """Return a number that somebody else has written.

    Raises:
        ValueError: It is something else, or too large to compute with.
    """
    # `type`, because True is an int. The second test also refuses NaN, which compares as false.
    if type(value) not in (int, float) or not abs(value) < _MAX_NUMBER:
        raise ValueError(f"found {brief(value)}, wanted a number")
    return value


def read_text(value: Any) -> str:
    """Return a text that somebody else has written, without characters that control a terminal.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"found {brief(value)}, wanted text")  # noqa: TRY004 (no caller's mistake)
    return printable(value)

"""What the processes did in the passes of a run, and what follows for the present pass."""

from __future__ import annotations

from collections import deque
from typing import Any

from virnucpro.runtime.monitoring.status import Sample

_MIN_WINDOW_BATCHES = 10
_MIN_MOVING_SECONDS = 15.0
_SHARE_OF_PASS = 0.1


class ProcessHistory:
    """What one process did in one pass: its latest samples, and sums over all of them.

    Attributes:
        last: The latest sample.
        advanced_at: The time at which it was last seen to have finished another batch.
        batch_seconds: The mean time of a batch, up to then; None before the first batch.
    """

    def __init__(self, first: Sample, window_seconds: float) -> None:
        self.last = first
        self.advanced_at = first.time
        self.batch_seconds: float | None = None
        self._min_window_seconds = window_seconds
        self._num_batches = 0
        self._recent: deque[Sample] = deque()
        # For each value of the GPU: its integral over time, that time, and its maximum.
        self._gpu: dict[str, tuple[float, float, float]] = {}
        self.add(first)

    def add(self, sample: Sample) -> None:
        """Add the next sample."""
        if sample.num_batches > self._num_batches:
            self._num_batches = sample.num_batches
            self.advanced_at = sample.time
            self.batch_seconds = sample.loop_seconds / sample.num_batches
        # Samples come at unequal intervals, so each counts for the time since the one before.
        seconds = sample.loop_seconds - self.last.loop_seconds
        if sample.gpu is not None and seconds > 0 and sample.state == "embedding":
            for name, value in vars(sample.gpu).items():
                if value is not None:
                    total, seen, highest = self._gpu.get(name, (0.0, 0.0, value))
                    total, seen = total + seconds * value, seen + seconds
                    self._gpu[name] = total, seen, max(value, highest)
        self.last = sample
        self._recent.append(sample)
        # The oldest sample that is kept is just outside the window, so that the window is full.
        while len(self._recent) > 2 and self._recent[1].time <= sample.time - self.window_seconds:
            self._recent.popleft()

    @property
    def window_seconds(self) -> float:
        """The time over which recent rates are measured: long enough for some batches."""
        return max(self._min_window_seconds, _MIN_WINDOW_BATCHES * (self.batch_seconds or 0.0))

    @property
    def fills_window(self) -> bool:
        """Whether the process is embedding, and has been for a whole window."""
        first = self._recent[0]
        embedded = self._is_embedding and first.loop_seconds > 0
        return embedded and self.last.time - first.time >= self.window_seconds

    def tokens_per_second(self, now: float) -> float:
        """Return the throughput over the window up to `now`, or over the pass if it has ended.

        The throughput falls while no samples arrive.
        """
        return self._per_second("num_tokens", now - self.last.time if self._is_embedding else 0.0)

    def share(self, kind: str) -> float:
        """Return the share of the same time that went into `data`, `device` or `disk`."""
        # A GPU's clock and the host's differ a little.
        return min(1.0, self._per_second(f"{kind}_seconds"))

    def summary(self) -> dict[str, Any]:
        """Return what run.json says about the process in this pass.

        Shares are of the time from the first batch to the last part. Utilization and power are
        means over the time in which the process embedded; memory and temperature are maxima.
        """
        last = self.last
        # A process that got no batch has shares of 0, and no division by 0.
        seconds = last.loop_seconds or 1.0
        means = {name: round(total / seen, 1) for name, (total, seen, _) in self._gpu.items()}
        maxima = {name: highest for name, (_, _, highest) in self._gpu.items()}
        return {
            "rank": last.rank,
            "host": last.host,
            "device": last.device,
            "tokens_per_second": round(last.num_tokens / seconds, 1),
            "batch_fill": last.batch_fill,
            "data_share": round(last.data_seconds / seconds, 4),
            "device_share": round(last.device_seconds / seconds, 4),
            "disk_share": round(last.disk_seconds / seconds, 4),
            "gpu_utilization_percent": means.get("utilization_percent"),
            "gpu_power_watts": means.get("power_watts"),
            "gpu_memory_bytes": maxima.get("memory_bytes"),
            "gpu_temperature_celsius": maxima.get("temperature_celsius"),
        }

    @property
    def _is_embedding(self) -> bool:
        return self.last.state == "embedding"

    def _per_second(self, counter: str, silent_seconds: float = 0.0) -> float:
        amount: float = getattr(self.last, counter)
        seconds = self.last.loop_seconds + silent_seconds
        if self._is_embedding:
            amount -= getattr(self._recent[0], counter)
            seconds -= self._recent[0].loop_seconds
        return amount / seconds if seconds > 0 else 0.0


class History:
    """The processes of a run, in the present pass and in the passes before it.

    Attributes:
        pass_name: The name of the present pass; None before the first one.
        processes: The processes of the present pass, by rank.
        began_at: The time of the first sample of the present pass.
        cost: The finished part of `total_cost`, in tokens.
    """

    def __init__(self, window_seconds: float = 60.0) -> None:
        self._window_seconds = window_seconds
        self._passes: dict[str, dict[int, ProcessHistory]] = {}
        self.begin_pass(None)

    def begin_pass(self, name: str | None) -> None:
        """Begin a pass without processes."""
        self.pass_name = name
        self.processes: dict[int, ProcessHistory] = {}
        self.began_at = 0.0
        self.cost = 0
        self.total_cost = 0
        self._costs: deque[tuple[float, int]] = deque()

    def add(self, sample: Sample) -> None:
        """Add the next sample of a process; the sample of another pass begins that pass."""
        if sample.name != self.pass_name:
            self.begin_pass(sample.name)
        process = self.processes.get(sample.rank)
        if process is None:
            self.cost += sample.cost
            process = ProcessHistory(sample, self._window_seconds)
            self.processes[sample.rank] = process
            self._passes[sample.name] = self.processes
        else:
            self.cost += sample.cost - process.last.cost
            process.add(sample)
        # A process knows the total only when it has planned its batches.
        self.total_cost = max(self.total_cost, sample.total_cost)
        self._note_cost(sample.time, process.window_seconds)

    def _note_cost(self, now: float, window_seconds: float) -> None:
        costs = self._costs
        if not costs:
            self.began_at = now
        # There is no rate while all processes load. Samples of one moment arrive one by one.
        elif self.cost == 0 or costs[-1][0] == now:
            costs.pop()
        costs.append((now, self.cost))
        window = max(window_seconds, _SHARE_OF_PASS * (now - self.began_at))
        while len(costs) > 2 and costs[1][0] <= now - window:
            costs.popleft()

    def is_done(self, num_processes: int) -> bool:
        """Return whether all processes have ended the pass."""
        states = [process.last.state for process in self.processes.values()]
        # A process may have published nothing yet.
        return len(states) == num_processes and set(states) == {"done"}

    @property
    def num_rows(self) -> int:
        """Rows that all processes together have embedded."""
        return sum(process.last.num_rows for process in self.processes.values())

    @property
    def total_rows(self) -> int:
        """Rows of the pass."""
        return max((process.last.total_rows for process in self.processes.values()), default=0)

    @property
    def share_done(self) -> float:
        """The finished share of the work, by cost, because rows differ a lot in length."""
        return self.cost / self.total_cost if self.total_cost else 0.0

    def tokens_per_second(self, now: float) -> float:
        """Return the throughput of all processes together."""
        return sum(process.tokens_per_second(now) for process in self.processes.values())

    def seconds_left(self, now: float) -> float | None:
        """Return the time that the rest of the pass takes; None if no process advances.

        The rate is that of the last minute, or of the last tenth of a long pass.
        """
        # A process advances if it finished a batch within a few of its batch times.
        advances = any(
            now - process.advanced_at < max(_MIN_MOVING_SECONDS, 3 * (process.batch_seconds or 0.0))
            for process in self.processes.values()
        )
        if not advances or self.cost == self._costs[0][1]:
            return None
        began_at, cost = self._costs[0]
        return (self.total_cost - self.cost) * (now - began_at) / (self.cost - cost)

    def summary(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return by the name of the pass and the rank what each process did."""
        return {
            name: {rank: processes[rank].summary() for rank in sorted(processes)}
            for name, processes in self._passes.items()
        }

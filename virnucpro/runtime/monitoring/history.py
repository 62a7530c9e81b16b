"""What all processes did of late in the present pass, and what follows from it."""

from __future__ import annotations

from collections import deque

from virnucpro.runtime.monitoring.status import Sample

_LEAST_BATCHES = 10
_LEAST_SECONDS = 15.0
_SHARE_OF_PASS = 0.1


class ProcessHistory:
    """One process's samples of the last while.

    Attributes:
        last: The latest.
        advanced_at: When it was last seen to have finished another batch.
        batch_seconds: What a batch of it takes, up to then; None before the first.
    """

    def __init__(self, first: Sample, window_seconds: float) -> None:
        self.last = first
        self.advanced_at = first.time
        self.batch_seconds: float | None = None
        self._least_seconds = window_seconds
        self._num_batches = 0
        self._recent: deque[Sample] = deque()
        self.add(first)

    def add(self, sample: Sample) -> None:
        """Take note of the next sample."""
        if sample.num_batches > self._num_batches:
            self._num_batches = sample.num_batches
            self.advanced_at = sample.time
            self.batch_seconds = sample.loop_seconds / sample.num_batches
        self.last = sample
        recent = self._recent
        recent.append(sample)
        while len(recent) > 2 and recent[1].time <= sample.time - self.window_seconds:
            recent.popleft()

    @property
    def window_seconds(self) -> float:
        """How far back "of late" goes: some batches at least."""
        return max(self._least_seconds, _LEAST_BATCHES * (self.batch_seconds or 0.0))

    @property
    def fills_window(self) -> bool:
        """Whether the process embeds, and has for as long as the window is."""
        first = self._recent[0]
        embedded = self._is_embedding and first.loop_seconds > 0
        return embedded and self.last.time - first.time >= self.window_seconds

    def tokens_per_second(self, now: float) -> float:
        """Return the throughput over the window up to `now`, or over the pass when it has ended.

        It falls while samples stay away.
        """
        silent = now - self.last.time if self._is_embedding else 0.0
        return self._per_second("num_tokens", silent)

    def share(self, kind: str) -> float:
        """Return the share of that time which went into `data`, `device` or `disk`."""
        return min(1.0, self._per_second(f"{kind}_seconds"))

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
    """The processes of the present pass.

    Attributes:
        pass_name: None before the first pass.
        processes: By rank.
        began_at: When the pass was first heard of.
        cost: What is done, of `total_cost`, in tokens.
    """

    def __init__(self, window_seconds: float = 60.0) -> None:
        self._window_seconds = window_seconds
        self._begin_pass(None)

    def _begin_pass(self, name: str | None) -> None:
        self.pass_name = name
        self.processes: dict[int, ProcessHistory] = {}
        self.began_at = 0.0
        self.cost = 0
        self.total_cost = 0
        self._costs: deque[tuple[float, int]] = deque()

    def add(self, sample: Sample) -> None:
        """Take note of a process's next sample; that of another pass begins anew."""
        if sample.pass_name != self.pass_name:
            self._begin_pass(sample.pass_name)
            self.began_at = sample.time
        process = self.processes.get(sample.rank)
        if process is None:
            self.cost += sample.cost
            self.processes[sample.rank] = ProcessHistory(sample, self._window_seconds)
        else:
            self.cost += sample.cost - process.last.cost
            process.add(sample)
        self.total_cost = max(self.total_cost, sample.total_cost)
        self._note_cost(sample.time, self.processes[sample.rank].window_seconds)

    def _note_cost(self, now: float, window_seconds: float) -> None:
        costs = self._costs
        if costs and (self.cost == 0 or costs[-1][0] == now):
            costs.pop()  # while all load there is no rate; processes are read one after the other
        costs.append((now, self.cost))
        window = max(window_seconds, _SHARE_OF_PASS * (now - self.began_at))
        while len(costs) > 2 and costs[1][0] <= now - window:
            costs.popleft()

    def is_done(self, num_processes: int) -> bool:
        """Return whether all processes have ended the pass."""
        states = [process.last.state for process in self.processes.values()]
        return len(states) == num_processes and set(states) == {"done"}

    @property
    def num_rows(self) -> int:
        """Rows that all processes have embedded."""
        return sum(process.last.num_rows for process in self.processes.values())

    @property
    def total_rows(self) -> int:
        """Rows of the pass."""
        return max((process.last.total_rows for process in self.processes.values()), default=0)

    @property
    def share_done(self) -> float:
        """The share of the work that is done, by cost: rows are of very different lengths."""
        return self.cost / self.total_cost if self.total_cost else 0.0

    def tokens_per_second(self, now: float) -> float:
        """Return the throughput of all processes together."""
        return sum(process.tokens_per_second(now) for process in self.processes.values())

    def seconds_left(self, now: float) -> float | None:
        """Return how long the rest of the pass takes at the rate of late; None if nothing moves.

        Of late is the last minute, or the last tenth of a long pass.
        """
        if not self._costs or self.cost == self._costs[0][1] or not self._moves(now):
            return None
        began, cost = self._costs[0]
        return (self.total_cost - self.cost) * (now - began) / (self.cost - cost)

    def _moves(self, now: float) -> bool:
        """Tell whether any process has finished a batch within a few of its batch times."""
        return any(
            now - process.advanced_at < max(_LEAST_SECONDS, 3 * (process.batch_seconds or 0.0))
            for process in self.processes.values()
        )

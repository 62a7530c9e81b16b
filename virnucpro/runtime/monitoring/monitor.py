"""Publishes what this process does; in the main process, records and judges all processes."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from virnucpro.checkpoints.whole_files import open_to_append
from virnucpro.runtime.monitoring.gpu import GpuReading
from virnucpro.runtime.monitoring.history import History
from virnucpro.runtime.monitoring.judge import Limits, Trouble, find_trouble
from virnucpro.runtime.monitoring.status import (
    UNREADABLE,
    PassStatus,
    Place,
    Sample,
    TrainingStatus,
)

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

logger = logging.getLogger(__name__)

# All processes count their passes alike, so that a pass has the same keys in each of them.
_pass_numbers = itertools.count()

_LINES_PER_SECOND = 50
_MAX_TROUBLES_AT_ONCE = 3


class Monitor:
    """Watches one process through a run, and in the main process all of them.

    Every process of the run makes one, as a context manager. Its thread publishes the state of this
    process through the store of the launch. The thread of the main process reads all states without
    waiting for any process. It alone writes metrics.jsonl, and it warns about trouble. A failure of
    the store or of the disk never ends a run.
    """

    def __init__(
        self,
        metrics_path: Path | None = None,
        place: Place | None = None,
        *,
        num_processes: int = 1,
        store: Store | None = None,
        read_gpu: Callable[[], GpuReading | None] = lambda: None,
        interval_seconds: float = 5.0,
        limits: Limits | None = None,
    ) -> None:
        self._metrics_path = metrics_path
        self._place = place or Place()
        self._num_processes = num_processes
        self._store = store
        self._read_gpu = read_gpu
        self._interval_seconds = interval_seconds
        self._limits = limits or Limits()
        self._is_main = self._place.rank == 0
        # Adjusting the system's clock in the middle of a run does not move this one.
        self._epoch = time.time() - time.monotonic()
        self._file: IO[str] | None = None
        self._history = History(self._limits.window_seconds)
        self._status: PassStatus | None = None
        self._last_own: Sample | None = None
        # The embedding thread and the monitor's own thread both tick.
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        if self._is_main and self._metrics_path is not None:
            self._file = _open_after_last_line(self._metrics_path)
            self._write({"kind": "start", "num_processes": self._num_processes})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The thread ends first, so that nothing is written behind the line "end".
        self._stopped.set()
        self._thread.join()
        outcome = "finished" if kind is None else kind.__name__
        self._write({"kind": "end", "outcome": outcome, "passes": self.summary()})
        if self._file is not None:
            self._file.close()

    def begin_pass(self, status: PassStatus) -> None:
        """Watch a pass. All processes begin their passes in the same order."""
        with self._lock:
            prefix = f"virnucpro/monitor/{next(_pass_numbers)}"
            self._keys = [f"{prefix}/{rank}" for rank in range(self._num_processes)]
            self._last_own = None
            self._status = status
            self._published: dict[str, str | bytes] = {}
            self._history.begin_pass(status.name)
            self._quiet_until: dict[tuple[str, int], float] = {}
            self._tick()

    def publish(self) -> None:
        """Publish the present state at once.

        If every process does this before a barrier, the main process ends the pass with the final
        state of each.
        """
        with self._lock:
            self._tick()

    def end_pass(self) -> None:
        """Note that all processes have ended the pass."""
        with self._lock:
            if self._status is not None:
                self._status.state = "done"
                self._tick()
                self._status = None

    def tell_training(self, training: TrainingStatus) -> None:
        """Record how far the training of all processes is."""
        with self._lock:
            self._write({"kind": "training"} | asdict(training))

    def summary(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return by pass and rank what each process did; only the main process knows it."""
        return self._history.summary()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause()):
            with self._lock:
                self._tick()

    def _pause(self) -> float:
        last = self._last_own
        is_young = (
            self._status is None or last is None or last.load_seconds + last.loop_seconds < 60
        )
        # People watch the beginning; later, and in large launches, the file must not grow fast.
        longest = 1.0 if is_young else self._interval_seconds
        return max(min(longest, self._interval_seconds), self._num_processes / _LINES_PER_SECOND)

    def _tick(self) -> None:
        status = self._status
        if status is None:
            return
        try:
            sample = Sample.take(status, self._place, self._read_gpu(), self._last_own)
            self._last_own = sample
            published = self._exchange(json.dumps(sample.to_json()))
            if self._is_main:
                self._collect(published, is_over=status.state == "done")
        # torch's stores have no narrower error.
        except RuntimeError as error:
            # Only for debugging: the claims use the same store, and they warn.
            logger.debug("the launch's store does not answer: %s", error)

    def _exchange(self, own: str) -> dict[str, str | bytes]:
        """Publish this process's sample; in the main process, return what all have published."""
        own_key = self._keys[self._place.rank]
        if self._store is None:
            return {own_key: own}
        self._store.set(own_key, own)
        if not self._is_main:
            return {}
        store = self._store
        keys = self._keys
        # Reading a missing key would wait for the process that is to write it.
        if not store.check(keys):
            keys = [key for key in keys if store.check([key])]
        return dict(zip(keys, store.multi_get(keys), strict=True))

    def _collect(self, published: dict[str, str | bytes], *, is_over: bool) -> None:
        """Write the samples that are new, and warn about trouble."""
        now = self._epoch + time.monotonic()
        for rank, key in enumerate(self._keys):
            text = published.get(key)
            # A silent process must look silent in the file: an old sample is not written again.
            if text is None or (text == self._published.get(key) and not is_over):
                continue
            # The store may be open to others, and what they write there must end nothing.
            with suppress(*UNREADABLE):
                sample = Sample.from_json(json.loads(text))
                # A process may still publish its last pass, or a stranger may use the key of
                # another process.
                if (sample.rank, sample.name) == (rank, self._history.pass_name):
                    self._add(sample, now, is_over=is_over)
        self._published = published
        self._warn(now)

    def _add(self, sample: Sample, now: float, *, is_over: bool) -> None:
        # All times of a run are by one clock.
        sample.time = now
        if is_over:
            sample.state = "done"
        self._history.add(sample)
        self._write({"kind": "sample"} | sample.to_json())

    def _warn(self, now: float) -> None:
        """Report each trouble of a process once, and again when the pass is twice as old."""
        new: dict[str, list[Trouble]] = {}
        for trouble in find_trouble(self._history, self._limits, now):
            if now >= self._quiet_until.get((trouble.kind, trouble.rank), 0.0):
                self._quiet_until[trouble.kind, trouble.rank] = 2 * now - self._history.began_at
                new.setdefault(trouble.kind, []).append(trouble)
        for troubles in new.values():
            messages = [trouble.message for trouble in troubles[:_MAX_TROUBLES_AT_ONCE]]
            if len(troubles) > _MAX_TROUBLES_AT_ONCE:
                more = len(troubles) - _MAX_TROUBLES_AT_ONCE
                messages.append(f"{self._history.pass_name}: the same of {more} other processes")
            for message in messages:
                logger.warning("%s", message)
                self._write({"kind": "warning", "message": message})

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"time": self._epoch + time.monotonic()} | line) + "\n")
            self._file.flush()
        except OSError as error:
            logger.warning("%s: cannot be written (%s)", self._metrics_path, error.strerror)
            self._file = None


def _open_after_last_line(path: Path) -> IO[str]:
    """Open a file whose last line may be incomplete because a run was killed."""
    file = open_to_append(path)
    if file.tell():
        with path.open("rb") as before:
            before.seek(-1, 2)
            if before.read() != b"\n":
                # Otherwise the half line and the first line of this run would be one, and lost.
                file.write("\n")
    return file

"""Publishes what this process does; in the main process, writes and judges what all of them do."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from virnucpro.runtime.monitoring.gpu import GpuReading
from virnucpro.runtime.monitoring.history import History
from virnucpro.runtime.monitoring.judge import Limits, Trouble, find_trouble
from virnucpro.runtime.monitoring.status import PassStatus, Place, Sample, take_sample
from virnucpro.runtime.monitoring.summary import Summary

logger = logging.getLogger(__name__)

_pass_numbers = itertools.count()

_LINES_PER_SECOND = 50
_TROUBLES_AT_ONCE = 3


class Store(Protocol):
    """The part that is used here of torch.distributed's stores."""

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""

    def check(self, keys: list[str], /) -> bool:
        """Tell at once whether all keys are there."""

    def multi_get(self, keys: list[str], /) -> Sequence[bytes]:
        """Return the values of keys that are there."""


class LocalStore:
    """Does for one process what torch's stores do for several."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""
        self._values[key] = value.encode()

    def check(self, keys: list[str], /) -> bool:
        """Tell whether all keys are there."""
        return self._values.keys() >= set(keys)

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Return the values of keys that are there."""
        return [self._values[key] for key in keys]


class Monitor:
    """Watches one process through a run, and in the main process all of them.

    A context manager, made by every process of the run. A thread publishes this process's state
    through the store of the launch; that of the main process reads them all, without waiting for
    any, writes them to metrics.jsonl, which thus has one writer, and warns of what it sees.
    Trouble with the store or the disk never ends a run.
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
        self._store = store or LocalStore()
        self._read_gpu = read_gpu
        self._interval_seconds = interval_seconds
        self._limits = limits or Limits()
        self._is_main = self._place.rank == 0
        # A clock that nobody sets back in the middle of a run.
        self._epoch = time.time() - time.monotonic()
        self._file: IO[str] | None = None
        self._summary = Summary()
        self._status: PassStatus | None = None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        if self._is_main and self._metrics_path is not None:
            self._file = _open_to_append(self._metrics_path)
            self._write({"kind": "start", "num_processes": self._num_processes})
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        outcome = "finished" if kind is None else kind.__name__
        self._write({"kind": "end", "outcome": outcome, "passes": self.summary()})
        if self._file is not None:
            self._file.close()

    def begin_pass(self, status: PassStatus) -> None:
        """Watch a pass. All processes begin their passes in the same order."""
        with self._lock:
            number = next(_pass_numbers)
            self._keys = [
                f"virnucpro/monitor/{number}/{rank}" for rank in range(self._num_processes)
            ]
            self._status = status
            self._last_own: Sample | None = None
            self._published: dict[str, bytes] = {}
            self._history = History(self._limits.window_seconds)
            self._told_until: dict[tuple[str, int], float] = {}
            self._tick()

    def publish(self) -> None:
        """Let the main process know the present state at once.

        After this in every process, and a barrier, the main one will end the pass with what all
        have done at last.
        """
        with self._lock:
            self._tick()

    def end_pass(self) -> None:
        """Note that all processes have ended the pass."""
        with self._lock:
            if self._status is None:
                return
            self._status.state = "done"
            self._tick()
            self._status = None

    def summary(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return by pass and rank what each process did, as `Summary` says: the main one knows."""
        return self._summary.to_dict()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause()):
            with self._lock:
                self._tick()

    def _pause(self) -> float:
        status = self._status
        is_young = status is None or status.load_seconds + status.loop_seconds < 60
        interval = min(1.0, self._interval_seconds) if is_young else self._interval_seconds
        return max(interval, self._num_processes / _LINES_PER_SECOND)

    def _tick(self) -> None:
        if self._status is None:
            return
        try:
            self._publish(self._status)
            if self._is_main:
                self._collect(is_over=self._status.state == "done")
        except RuntimeError as error:  # torch's stores have no narrower one
            logger.debug("the launch's store does not answer: %s", error)

    def _publish(self, status: PassStatus) -> None:
        sample = take_sample(status, self._place, self._read_gpu()).since(self._last_own)
        self._last_own = sample
        self._store.set(self._keys[self._place.rank], json.dumps(sample.to_json()))

    def _collect(self, *, is_over: bool) -> None:
        """Read what all have published, write what is new, and warn."""
        now = self._epoch + time.monotonic()
        there = [key for key in self._keys if key in self._published or self._store.check([key])]
        for key, published in zip(there, self._store.multi_get(there), strict=True):
            if published == self._published.get(key) and not is_over:
                continue
            self._published[key] = published
            sample = dataclasses.replace(Sample.from_json(json.loads(published)), time=now)
            if is_over:
                sample = dataclasses.replace(sample, state="done")
            self._history.add(sample)
            self._summary.add(sample)
            self._write({"kind": "sample"} | sample.to_json())
        self._warn(now)

    def _warn(self, now: float) -> None:
        """Report each trouble of a process once, and again when the pass is twice as old."""
        new: dict[str, list[Trouble]] = {}
        for trouble in find_trouble(self._history, self._limits, now):
            if now >= self._told_until.get((trouble.kind, trouble.rank), 0.0):
                self._told_until[trouble.kind, trouble.rank] = 2 * now - self._history.began_at
                new.setdefault(trouble.kind, []).append(trouble)
        for troubles in new.values():
            messages = [trouble.message for trouble in troubles[:_TROUBLES_AT_ONCE]]
            if len(troubles) > _TROUBLES_AT_ONCE:
                more = len(troubles) - _TROUBLES_AT_ONCE
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
            logger.warning("%s: no longer written (%s)", self._metrics_path, error.strerror)
            self._file = None


def _open_to_append(path: Path) -> IO[str]:
    """Open a file whose last line may have been cut off as a run was killed."""
    file = path.open("a+", encoding="utf-8")
    if file.tell():
        with path.open("rb") as before:
            before.seek(-1, 2)
            if before.read() != b"\n":
                file.write("\n")
    return file

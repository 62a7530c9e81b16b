"""How a run stands, read from its metrics.jsonl while that grows, from wherever it can be seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from virnucpro.runtime.monitoring.history import History
from virnucpro.runtime.monitoring.status import Sample
from virnucpro.runtime.monitoring.summary import Summary


class RunState:
    """The latest run that a metrics file tells of.

    Attributes:
        num_processes: Of the run; 0 before its first line.
        history: What the processes of the present pass do.
        summary: What they did in all passes.
        outcome: None while it goes on; `finished`, or the name of the error that ended it.
        warnings: All that were given.
        began_at: By the run's clock, as all times here, in seconds since 1970.
        last_time: Of the latest line.
    """

    def __init__(self, path: Path, *, since: float = 0.0) -> None:
        """Read lines from `path` that are not older than `since`."""
        self._lines = _Tail(path)
        self._since = since
        self._begin({"num_processes": 0, "time": since})

    def _begin(self, line: dict[str, Any]) -> None:
        self.num_processes: int = line["num_processes"]
        self.began_at: float = line["time"]
        self.last_time = self.began_at
        self.history = History()
        self.summary = Summary()
        self.outcome: str | None = None
        self.warnings: list[str] = []

    def read(self) -> Iterator[RunState]:
        """Take in what the file has got since the last call; yield itself after each line."""
        for line in self._lines.read():
            # What another program or a version too different has written is passed over.
            with suppress(KeyError, TypeError):
                if line["time"] >= self._since:
                    self._add(line)
                    yield self

    def _add(self, line: dict[str, Any]) -> None:
        match line["kind"]:
            case "start":
                self._begin(line)
            case "sample":
                sample = Sample.from_json(line)
                self.history.add(sample)
                self.summary.add(sample)
            case "warning":
                self.warnings.append(line["message"])
            case "end":
                self.outcome = line["outcome"]
        self.last_time = line["time"]

    def to_json(self) -> dict[str, Any]:
        """Return all that a view shows."""
        history, now = self.history, self.last_time
        return {
            "outcome": self.outcome,
            "num_processes": self.num_processes,
            "began_at": self.began_at,
            "last_time": now,
            "pass": history.pass_name,
            "num_rows": history.num_rows,
            "total_rows": history.total_rows,
            "share_done": history.share_done,
            "seconds_left": history.seconds_left(now),
            "tokens_per_second": history.tokens_per_second(now),
            "processes": [
                history.processes[rank].last.to_json() for rank in sorted(history.processes)
            ],
            "warnings": self.warnings,
            "passes": self.summary.to_dict(),
        }


class _Tail:
    """Reads the whole lines that a file has got since the last time.

    It is opened anew each time, so that network file systems look at the server's copy.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = b""
        self._position = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the new lines, of another file that has taken its place from the start."""
        # What is not there, or on a server that is away, may be there the next time.
        with suppress(OSError), self._path.open("rb") as file:
            first = file.readline()
            if first != self._first:
                self._first, self._position = first, 0
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is just being written
                self._position += len(line)
                yield from _parse(line)


def _parse(line: bytes) -> Iterator[dict[str, Any]]:
    """Yield what a line holds, or nothing if it was cut off as a run was killed."""
    try:
        yield json.loads(line)
    except ValueError:
        return

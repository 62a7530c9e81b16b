"""Reads the state of a run from its metrics.jsonl while that grows, on any machine that sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from virnucpro.runtime.monitoring.history import History
from virnucpro.runtime.monitoring.status import (
    UNREADABLE,
    Sample,
    TrainingStatus,
    read_number,
    read_text,
)


class RunState:
    """The latest run in a metrics file.

    Attributes:
        num_processes: The processes of the run; 0 before its first line.
        training: How far the encoders are trained; None if they are not. It comes before any pass.
        history: What the processes do in the present pass, and did before.
        outcome: None while the run goes on; `finished`, or the name of the error that ended it.
        warnings: All warnings of the run.
        began_at: The time by the run's clock, as all times here, in seconds since 1970.
        last_time: The time of the latest line.
        is_there: Whether the file was there at the last reading.
    """

    def __init__(self, path: Path, *, since: float = 0.0) -> None:
        """Prepare to read the lines in `path` that are not older than `since`."""
        self._path = path
        self._since = since
        self._first_line = b""
        self._position = 0
        self.is_there = True
        self._begin({"num_processes": 0, "time": since})

    def _begin(self, line: dict[str, Any]) -> None:
        self.num_processes: int = read_number(line["num_processes"])
        self.began_at: float = line["time"]
        self.last_time = self.began_at
        self.training: TrainingStatus | None = None
        self.history = History()
        self.outcome: str | None = None
        self.warnings: list[str] = []

    def read(self) -> Iterator[RunState]:
        """Read the lines that are new since the last call; yield itself after each."""
        for line in self._read_lines():
            # Skip damaged lines, and what other programs or very different versions have written.
            with suppress(*UNREADABLE):
                values = json.loads(line)
                if read_number(values["time"]) >= self._since:
                    self._add(values)
                    yield self

    def _read_lines(self) -> Iterator[bytes]:
        """Yield the new whole lines; if another file has taken the place, all lines of that."""
        # The file is opened anew each time, so that network file systems ask the server. A file
        # that is missing, or whose server is away, may be back the next time.
        try:
            file = self._path.open("rb")
        except OSError as error:
            self.is_there = not isinstance(error, FileNotFoundError)
            return
        self.is_there = True
        with suppress(OSError), file:
            first_line = file.readline()
            # The first line holds the time of its run, so another file has another first line.
            # And the lines of a command that was refused are removed again.
            if first_line != self._first_line or file.seek(0, os.SEEK_END) < self._position:
                self._first_line, self._position = first_line, 0
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    # The rest of this line is not written yet.
                    return
                self._position += len(line)
                yield line

    def _add(self, line: dict[str, Any]) -> None:
        match line["kind"]:
            # A resumed run goes on in the file of the earlier one.
            case "start":
                self._begin(line)
            case "sample":
                self.history.add(Sample.from_json(line))
            case "training":
                self.training = TrainingStatus.from_json(line)
            case "warning":
                self.warnings.append(read_text(line["message"]))
            case "end":
                self.outcome = read_text(line["outcome"])
        self.last_time = line["time"]

    def to_json(self) -> dict[str, Any]:
        """Return everything that a view shows."""
        history, now = self.history, self.last_time
        return {
            "outcome": self.outcome,
            "num_processes": self.num_processes,
            "began_at": self.began_at,
            "last_time": now,
            "training": None if self.training is None else asdict(self.training),
            "pass": history.pass_name,
            "num_rows": history.num_rows,
            "total_rows": history.total_rows,
            "share_done": history.share_done,
            "seconds_left": history.seconds_left(now),
            "tokens_per_second": history.tokens_per_second(now),
            "processes": [
                process.last.to_json() for _, process in sorted(history.processes.items())
            ],
            "warnings": self.warnings,
            "passes": history.summary(),
        }

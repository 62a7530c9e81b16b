"""Digests of large files, kept in the user's cache, so that not every run reads the files again.

A digest counts as long as the system reports the same size, inode and times of the file. Nobody can
set the time of the last change (ctime), so a file that was written to is read again. Damage by the
disk itself changes no time; `virnucpro models verify` finds it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from virnucpro.backend.places import user_cache_dir

MIN_BYTES = 1 << 26
"""Smaller files are read each time, which takes a tenth of a second."""

# Some file systems count time in steps of two seconds, and a server's clock may be a little off. A
# younger file could change once more and keep its times.
_MIN_AGE_NS = 10 * 10**9

State = list[int]


def get_state(path: Path) -> State:
    """Return what changes with each write to a file: its size, inode and times."""
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def recall(path: Path, state: State) -> str | None:
    """Return the SHA-256 of a file in this state, in hexadecimal digits; None if it is not kept."""
    entry = read_remembered().get(str(path.resolve()), {})
    return entry["sha256"] if entry.get("state") == state else None


def remember(path: Path, state: State, sha256: str) -> None:
    """Keep the digest of a file for later runs, if the file is large and has come to rest.

    Args:
        path: The file.
        state: Its state before it was digested.
        sha256: Its digest, in hexadecimal digits.
    """
    # The second look tells a file that was written to while it was read.
    is_at_rest = get_state(path) == state and max(state[2:]) < time.time_ns() - _MIN_AGE_NS
    if state[0] >= MIN_BYTES and is_at_rest:
        _write(read_remembered() | {str(path.resolve()): {"state": state, "sha256": sha256}})


def forget(path: str) -> None:
    """Remove what is kept of a file."""
    _write({name: entry for name, entry in read_remembered().items() if name != path})


def read_remembered() -> dict[str, dict[str, Any]]:
    """Return the `state` and `sha256` of all files whose digests are kept, by path."""
    try:
        entries = json.loads(_place().read_text(encoding="utf-8"))
        return {
            path: {"state": entry["state"], "sha256": str(entry["sha256"])}
            for path, entry in entries.items()
        }
    # The file only saves time, so whatever is wrong with it ends no run.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write(entries: dict[str, dict[str, Any]]) -> None:
    # Without a home directory, or if it is read-only, nothing is kept.
    with suppress(OSError, RuntimeError):
        path = _place()
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: of two processes that write at once, one may lose its entry, no more.
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        part.replace(path)


def _place() -> Path:
    return user_cache_dir() / "digests.json"

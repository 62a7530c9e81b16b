"""The lock of a run directory, which keeps a second run away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from virnucpro.errors import UsageError


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs away for as long as the body lasts.

    Raises:
        UsageError: Another run holds the lock.
    """
    # The operating system holds the lock, so it goes with the process, however that ends.
    try:
        held = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{path.parent}: another run is going on here; wait for it, or choose another output"
        ) from None
    with held:
        yield

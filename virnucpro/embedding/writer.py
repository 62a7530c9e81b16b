"""The thread that writes finished batches as checkpoint parts, while the device computes.

Shapes: B sequences in a batch, E the embedding's dimension.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import next_part_number, part_name, write_part
from virnucpro.errors import NonFiniteEmbeddingError, count
from virnucpro.runtime.monitoring import PassStatus

# Eight batches of 150-bp reads are some 50 MB of embeddings of ESM-2 3B.
_MAX_WAITING_BATCHES = 8

logger = logging.getLogger(__name__)


class PartWriter:
    """Collects batches, and writes a part after `rows_per_part` rows or `seconds_per_part`.

    It is a context manager. Leaving it writes all batches that it has, also after an exception: so
    an interrupted run keeps everything that it computed. It adds the time of writing to `status`.

    Attributes:
        parts: The parts that it has written.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        identity: Identity,
        status: PassStatus,
        *,
        rows_per_part: int = 10_000,
        seconds_per_part: float = 300.0,
    ) -> None:
        self.parts: list[Path] = []
        self._directory = directory
        self._rank = rank
        self._identity = identity
        self._status = status
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        # Read once: no other process writes parts with this rank while the run holds the lock.
        self._number = next_part_number(directory, rank)
        self._rows: list[Int64Array] = []
        self._embeddings: list[Float32Array] = []
        self._num_rows = 0
        self._part_began = 0.0
        self._failure: BaseException | None = None
        # SimpleQueue is written in C: Ctrl-C interrupts it before or after its work. A queue.Queue
        # that is interrupted in its work can keep its lock. Then the thread never learns of the
        # end, and `__exit__` waits for ever.
        self._queue: queue.SimpleQueue[tuple[Int64Array, Callable[[], Float32Array]] | None] = (
            queue.SimpleQueue()
        )
        # If the disk is slower than the device, `put` waits for a free slot: memory stays bounded.
        self._free_slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_MAX_WAITING_BATCHES):
            self._free_slots.put(None)
        # A daemon, so that a second Ctrl-C in `__exit__` can end the program while the disk hangs.
        self._thread = threading.Thread(target=self._run, name="part-writer", daemon=True)

    def __enter__(self) -> PartWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # The end comes behind all batches, so that they are written first, also after an error.
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            if error is None:
                raise self._failure
            # Otherwise `put` raised it, and the caller reports it.
            if error is not self._failure:
                logger.warning("The last part was not written: %s", self._failure)

    def put(self, rows: Int64Array, fetch: Callable[[], Float32Array]) -> None:
        """Hand over one batch.

        Args:
            rows: int64 (B,).
            fetch: Returns the embeddings (B, E). The thread calls it, because on a GPU it waits
                until they are computed and copied.

        Raises:
            VirnucproError: The thread failed since the last call.
        """
        if self._failure is not None:
            raise self._failure
        # Before the batch is queued: this is where a slow disk holds the device back.
        self._free_slots.get()
        self._queue.put((rows, fetch))

    def _run(self) -> None:
        item = self._queue.get()
        try:
            while item is not None:
                self._free_slots.put(None)
                self._collect(*item)
                item = self._queue.get()
            self._write()
        except BaseException as error:
            # Kept for `put` and `__exit__`: otherwise an error in a thread would vanish.
            self._failure = error
        # After a failure, the thread goes on freeing slots, or `put` would wait for ever.
        while item is not None:
            item = self._queue.get()
            self._free_slots.put(None)

    def _collect(self, rows: Int64Array, fetch: Callable[[], Float32Array]) -> None:
        # Waits for the GPU here, so that the loop does not have to.
        embeddings = fetch()
        # Before anything is written: a finished part is never computed again.
        bad = ~np.isfinite(embeddings).all(axis=1)
        if bad.any():
            raise NonFiniteEmbeddingError(
                f"{self._identity.backend} in {self._identity.precision} returned NaN or infinity "
                f"for {bad.sum()} of {count(len(rows), 'sequence')} (first row: "
                f"{rows[bad][0]}); try --precision bf16 or fp32, or check the weights"
            )
        if not self._rows:
            self._part_began = time.monotonic()
        self._rows.append(rows)
        self._embeddings.append(embeddings)
        self._num_rows += len(rows)
        # A slow device fills a part in hours. The limit in time bounds what a crash can lose.
        age = time.monotonic() - self._part_began
        if self._num_rows >= self._rows_per_part or age >= self._seconds_per_part:
            self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        began = time.monotonic()
        part = write_part(
            self._directory,
            part_name(self._rank, self._number),
            np.concatenate(self._rows),
            np.concatenate(self._embeddings),
            self._identity,
        )
        self.parts.append(part)
        self._status.disk_seconds += time.monotonic() - began
        # Only after the part is whole. No number is used twice, so no part is overwritten.
        self._number += 1
        self._rows, self._embeddings, self._num_rows = [], [], 0

"""The thread that writes parts: what it writes and when, and how it ends."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.embedding.writer import PartWriter
from virnucpro.errors import NonFiniteEmbeddingError, OutputError
from virnucpro.runtime.monitoring import PassStatus

DIM = 3
IDENTITY = Identity(
    input_digest="sha256:11",
    backend="toy",
    backend_version="1.0",
    weights_identity="sha256:22",
    precision="fp16",
    chunk_length_bp=500,
    pooling="mean",
    embedding_dim=DIM,
)
PATIENCE_S = 10.0

Array = np.ndarray[Any, Any]


def batch(*rows: int) -> tuple[Array, Callable[[], Array]]:
    """Return what `put` takes: rows, and what fetches embeddings that tell their rows."""
    row_array = np.array(rows, np.int64)
    return row_array, lambda: embed(row_array)


def make_status() -> PassStatus:
    return PassStatus("toy embeddings", total_rows=0, total_cost=0, budget_tokens=0)


def embed(rows: Array) -> Array:
    return np.outer(rows + 1, [1, 0.5, 0.25]).astype(np.float32)


def rows_of_parts(directory: Path) -> list[list[int]]:
    return [finished_rows([path]).tolist() for path in finished_parts(directory)]


def test_a_part_ends_with_the_batch_that_fills_it(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 4, IDENTITY, make_status(), rows_per_part=4) as writer:
        for rows in ((0, 1, 2), (5, 3), (4,), (6,)):
            writer.put(*batch(*rows))
    assert [path.name for path in finished_parts(tmp_path)] == [
        "part-00004-000000.h5",
        "part-00004-000001.h5",
    ]
    assert rows_of_parts(tmp_path) == [[0, 1, 2, 3, 5], [4, 6]]
    rows = np.array([6, 0, 3])
    reader = EmbeddingReader(finished_parts(tmp_path))
    np.testing.assert_array_equal(reader.gather(rows), embed(rows))


def test_a_part_also_ends_when_it_is_old(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0, IDENTITY, make_status(), seconds_per_part=0) as writer:
        for row in range(3):
            writer.put(*batch(row))
    assert rows_of_parts(tmp_path) == [[0], [1], [2]]


def test_parts_are_numbered_on(tmp_path: Path) -> None:
    for row in range(2):
        with PartWriter(tmp_path, 0, IDENTITY, make_status()) as writer:
            writer.put(*batch(row))
    assert rows_of_parts(tmp_path) == [[0], [1]]


def test_nothing_handed_over_is_nothing_written(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0, IDENTITY, make_status()):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_holds_the_device_back(tmp_path: Path) -> None:
    disk_is_ready = threading.Event()
    num_accepted = 0
    status = make_status()

    def compute() -> None:
        nonlocal num_accepted
        with PartWriter(tmp_path, 0, IDENTITY, status) as writer:
            for row in range(100):
                rows, fetch = batch(row)
                writer.put(rows, lambda fetch=fetch: disk_is_ready.wait() and fetch())
                num_accepted += 1

    device = threading.Thread(target=compute, daemon=True)
    device.start()
    device.join(0.3)
    assert device.is_alive()
    # Few batches are in memory: one at the disk and those that wait.
    assert num_accepted <= 16
    disk_is_ready.set()
    device.join(PATIENCE_S)
    assert not device.is_alive()
    assert num_accepted == 100
    assert status.disk_seconds > 0
    assert rows_of_parts(tmp_path) == [list(range(100))]


def put_and_interrupt(writer: PartWriter, rows: Array, fetch: Callable[[], Array]) -> None:
    writer.put(rows, fetch)
    raise KeyboardInterrupt


def test_whatever_ends_the_run_what_was_handed_over_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        PartWriter(tmp_path, 0, IDENTITY, make_status()) as writer,
    ):
        put_and_interrupt(writer, *batch(7, 8))
    assert rows_of_parts(tmp_path) == [[7, 8]]


def interrupt(call: Callable[[], None], at_instruction: int) -> bool:
    """Raise KeyboardInterrupt at an instruction of a call, as Ctrl-C would.

    Returns:
        Whether the call had so many instructions of Python.
    """
    num_seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal num_seen
        frame.f_trace_opcodes = True
        num_seen += event == "opcode"
        if num_seen > at_instruction:
            raise KeyboardInterrupt
        return trace

    # Python 3.12 looks only here whether instructions are traced at all.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_interruption_at_any_instruction_of_put_does_not_hang_the_end(tmp_path: Path) -> None:
    rows_after: list[list[int]] = []

    def put_interrupted(at_instruction: int) -> None:
        directory = tmp_path / str(at_instruction)
        with PartWriter(directory, 0, IDENTITY, make_status()) as writer:
            writer.put(*batch(0))
            time.sleep(0.002)  # so that the thread waits for the next batch
            was_interrupted = interrupt(lambda: writer.put(*batch(1)), at_instruction)
        rows_after.append(finished_rows(finished_parts(directory)).tolist())
        is_done.append(not was_interrupted)

    is_done = [False]
    while not is_done[-1]:
        run = threading.Thread(target=put_interrupted, args=[len(rows_after)], daemon=True)
        run.start()
        run.join(PATIENCE_S)
        assert not run.is_alive(), f"hangs when interrupted at instruction {len(rows_after)}"
    assert rows_after[0] == [0]
    assert rows_after[-1] == [0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    rows = np.array([10, 30, 20])
    embeddings = embed(rows)
    embeddings[1:, 2] = bad
    message = r"toy in fp16 returned NaN or infinity for 2 of 3 sequences \(first row: 30\)"
    with (
        pytest.raises(NonFiniteEmbeddingError, match=message),
        PartWriter(tmp_path, 0, IDENTITY, make_status()) as writer,
    ):
        writer.put(rows, lambda: embeddings)
    assert finished_parts(tmp_path) == []


def put_until_refused(writer: PartWriter) -> None:
    """Hand over more batches than can wait; the thread's failure must come back before the end."""
    for row in range(100):
        writer.put(*batch(row))
    pytest.fail("a hundred batches were taken")


def test_what_fails_in_the_thread_ends_the_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot be made"),
        PartWriter(
            tmp_path / "file" / "parts", 0, IDENTITY, make_status(), rows_per_part=1
        ) as writer,
    ):
        put_until_refused(writer)
    assert caplog.messages == []  # said once, by the error


def test_a_second_trouble_does_not_hide_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(KeyboardInterrupt),
        PartWriter(tmp_path / "file" / "parts", 0, IDENTITY, make_status()) as writer,
    ):
        put_and_interrupt(writer, *batch(0))
    (message,) = caplog.messages
    assert message.startswith("The last part was not written: ")
    assert "cannot be made" in message

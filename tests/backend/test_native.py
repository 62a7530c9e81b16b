"""What native code prints in a panic stays off the terminal, and nothing else does."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from virnucpro.backend.native import explaining_panics


def test_what_is_no_panic_stays_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    with explaining_panics(Path("x")):
        os.write(2, b"one\n")
    with pytest.raises(ZeroDivisionError), explaining_panics(Path("x")):
        _ = os.write(2, b"two\n") // 0
    assert capfd.readouterr().err == "one\ntwo\n"


def test_several_threads_leave_standard_error_in_its_place(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def write(number: int) -> None:
        with explaining_panics(Path("x")):
            time.sleep(0.001 * (number % 3))
            os.write(2, b"in\n")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    os.write(2, b"end\n")
    assert capfd.readouterr().err == "in\n" * 40 + "end\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, "/dev/full"])
def test_without_a_standard_error_that_can_be_written(path: str | None) -> None:
    child = os.fork()
    if not child:
        os.close(2)
        # As Python starts if nobody gave it a standard error, and with one on a full disk.
        sys.stderr = None if path is None else Path(path).open("w")  # type: ignore[assignment]  # noqa: SIM115
        if path is not None:
            sys.stderr.write("a message that waits")
        try:
            with explaining_panics(Path("x")):
                pass
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Runs the command line in children of this process, which has imported the slow modules once."""

from __future__ import annotations

import atexit
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from virnucpro.cli.main import main

# All that a command imports on its way, once for all children.
for _name in (
    *("accelerate.data_loader", "safetensors.torch", "rich.live", "torch.distributed.elastic"),
    *("virnucpro_esm2.weights", "virnucpro_esm2.tokens"),
    *("virnucpro_dnabert_s.weights", "virnucpro_dnabert_s.tokens"),
    *(f"virnucpro.cli.{name}" for name in ("predict", "embed", "train", "migrate", "export")),
    *(f"virnucpro.workflows.{name}" for name in ("predict", "embed", "train", "migrate", "export")),
    *("virnucpro.cli.monitor", "virnucpro.reports.figures"),
):
    importlib.import_module(_name)

BUG = "This is a bug in virnucpro"


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        exit_code: As the shell knows it; None if the child took too long and was killed.
        output: What it wrote to standard output and standard error.
        peak_bytes: The memory that it had at most, with that of the parent which it shared.
    """

    exit_code: int | None
    output: str
    seconds: float
    peak_bytes: int

    @property
    def is_crash(self) -> bool:
        """Whether it ended by a signal or by an error that no message explains."""
        killed = self.exit_code is not None and (self.exit_code < 0 or self.exit_code > 4)
        unexplained = bool(self.exit_code) and "Error: " not in self.output
        return killed or unexplained or BUG in self.output or "Traceback" in self.output


def start(
    work: Sequence[str] | Callable[[], None],
    output: Path,
    *,
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a command line, or a function, in a child, and return the child's number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        atexit._clear()  # what is registered belongs to the parent
        os.setpgid(0, 0)
        opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(opened, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.chdir(directory)
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        if callable(work):
            work()
            code = 0
        else:
            main(list(work), prog_name="virnucpro")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int, output: Path, seconds: float) -> Ending:
    """Wait for a child, and kill it with all that it has started when the time is over."""
    began = time.monotonic()
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        took = time.monotonic() - began
        if ended or took > seconds:
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    code = None
    if ended:
        code = os.waitstatus_to_exitcode(status)
    else:
        _, _, usage = os.wait4(pid, 0)
    text = output.read_text(encoding="utf-8", errors="replace")
    return Ending(code, text, took, usage.ru_maxrss << 10)


def limit_memory(num_bytes: int) -> None:
    """Refuse this process and its children more memory than they have now and so much more."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, hard))

"""Starts one process for each GPU: how many a run needs, and the launch of them.

The launcher does without torch, whose import takes seconds. The processes import it, all at once.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

import virnucpro
from virnucpro.errors import INTERRUPTED, ProcessError, Terminated, UsageError
from virnucpro.runtime.environment import LISTENER, RELAUNCHED, num_cores, read_torch_build

_ADDRESS = "127.0.0.1"
_POLL_SECONDS = 0.05
_SECONDS_TO_END = 30.0


def choose_num_processes(device: str, num_processes: int | None, gpus: str | None) -> int:
    """Return how many processes a run needs: one for each GPU, unless `num_processes` is less.

    Args:
        device: As in ComputeConfig.
        num_processes: What the user wants; None for one process for each GPU, or one on a CPU.
        gpus: The user's `--gpus`, which CUDA_VISIBLE_DEVICES already holds: ids with commas.

    Raises:
        UsageError: There are fewer GPUs than processes, or than ids in `gpus`.
    """
    if device == "cpu":
        return num_processes or 1
    if device not in ("auto", "cuda"):
        if (num_processes or 1) > 1:
            raise UsageError(
                f"{num_processes} processes need a GPU each, and device {device} is a single one; "
                "leave out one of the two, or choose GPUs with --gpus"
            )
        return 1
    num_gpus = _count_gpus()
    if gpus is not None and num_gpus == 0:
        raise UsageError(
            f"--gpus {gpus}: torch finds no NVIDIA GPU here, or was built without CUDA; leave the "
            "option out to use the CPU, or look at `nvidia-smi -L`"
        )
    if gpus is not None and gpus.count(",") + 1 != num_gpus:
        raise UsageError(
            f"--gpus {gpus}: torch finds only {num_gpus} of these GPUs here; `nvidia-smi -L` lists "
            "the numbers of all"
        )
    if num_processes is None:
        return max(1, num_gpus)
    if num_processes > num_gpus and (num_gpus or device == "cuda"):
        raise UsageError(
            f"{num_processes} processes need a GPU each, and this machine shows {num_gpus}; "
            "start fewer, or give --device cpu"
        )
    return num_processes


def _count_gpus() -> int:
    """Return how many GPUs torch finds, without importing it where the driver can tell as well.

    Neither way starts CUDA, which would take memory on the first GPU.
    """
    # All kinds of lists but plain numbers, such as those of parts of GPUs, are left to torch.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if read_torch_build().get("cuda") and re.fullmatch(r"\d+(,\d+)*", visible):
        numbers = [int(number) for number in visible.split(",")]
        num_gpus = ask_driver()
        if len(set(numbers)) == len(numbers) and max(numbers) < num_gpus:
            return len(numbers) if "CUDA_VISIBLE_DEVICES" in os.environ else num_gpus
    import torch

    return torch.cuda.device_count()


@functools.cache
def ask_driver() -> int:
    """Return how many GPUs NVIDIA's driver has; 0 if it does not tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
        num_gpus = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except Exception:
        # There is no driver, or it is broken.
        return 0
    return num_gpus


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run the command line in several processes of this machine, and return their exit code.

    A signal to this process goes on to the others, which have half a minute to finish.

    Args:
        num_processes: At least 2.
        arguments: The command line without the program's name.

    Raises:
        ProcessError: A process was killed.
        KeyboardInterrupt: This process or one of the others was interrupted.
        Terminated: This process or one of the others was terminated.
    """
    # By its path: `-m virnucpro` would find a stranger's virnucpro/ in the working directory.
    program = str(Path(virnucpro.__file__).with_name("__main__.py"))
    processes: list[subprocess.Popen[bytes]] = []
    # Port 0: the system chooses a free one. The first process gets the socket, so no other program
    # can take the port.
    with socket.create_server((_ADDRESS, 0)) as listener:
        try:
            for rank in range(num_processes):
                environment = _make_environment(listener, rank, num_processes)
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-u", program, *arguments],
                        env=environment,
                        pass_fds=[listener.fileno()] if rank == 0 else [],
                        # Ctrl-C at a terminal reaches this process alone, which passes it on.
                        start_new_session=True,
                    )
                )
            exit_codes = _wait(processes)
        except BaseException as error:
            is_interrupt = isinstance(error, KeyboardInterrupt)
            _end(processes, signal.SIGINT if is_interrupt else signal.SIGTERM)
            raise
    return _find_exit_code(exit_codes)


def _make_environment(listener: socket.socket, rank: int, num_processes: int) -> dict[str, str]:
    """Return the variables of one process: those that torch and Accelerate read, and ours."""
    # By default each process would start a thread for every core, and slow the others down.
    cores = min(num_cores(), psutil.cpu_count(logical=False) or 1)
    defaults = {"OMP_NUM_THREADS": str(max(1, cores // num_processes))}
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_processes,
        "LOCAL_WORLD_SIZE": num_processes,
        "MASTER_ADDR": _ADDRESS,
        "MASTER_PORT": listener.getsockname()[1],
        RELAUNCHED: os.getpid(),
    }
    if rank == 0:
        place[LISTENER] = listener.fileno()
    return defaults | os.environ | {name: str(value) for name, value in place.items()}


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> dict[int, int]:
    """Return the exit codes by rank, in the order in which the processes ended.

    When one of them fails, the others are told to end.
    """
    exit_codes: dict[int, int] = {}
    while len(exit_codes) < len(processes):
        for rank, process in enumerate(processes):
            if rank not in exit_codes and process.poll() is not None:
                exit_codes[rank] = process.returncode
        if any(exit_codes.values()):
            _end(processes, signal.SIGTERM)
            return exit_codes | {
                rank: process.returncode
                for rank, process in enumerate(processes)
                if rank not in exit_codes
            }
        time.sleep(_POLL_SECONDS)
    return exit_codes


def _end(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    """Send a signal to all processes that run, and kill those that do not end in time."""
    running = [process for process in processes if process.poll() is None]
    try:
        for process in running:
            process.send_signal(number)
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in running:
            process.wait(max(0.0, deadline - time.monotonic()))
    # An interrupt says that the user has lost patience.
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in running:
            process.kill()
            process.wait()


def _find_exit_code(exit_codes: Mapping[int, int]) -> int:
    """Return the exit code of the process that failed first and ended the others.

    Args:
        exit_codes: By rank, in the order in which the processes ended; minus the number of the
            signal for a process that one has killed.
    """
    failed = {rank: code for rank, code in exit_codes.items() if code}
    if not failed:
        return 0
    # A process that only lost the others ends with 1, or this one terminates it.
    consequences = (1, Terminated.exit_code, -signal.SIGTERM)
    # The first process that failed for a reason of its own tells what the user must mend.
    causes = (one for one in failed.items() if one[1] not in consequences)
    rank, code = next(causes, next(iter(failed.items())))
    if code == Terminated.exit_code:
        raise Terminated
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        raise ProcessError(
            f"process {rank} was killed ({signal.Signals(-code).name}), often because memory ran "
            "out"
        )
    return code

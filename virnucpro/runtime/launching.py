"""Starts one process for each GPU: how many a run needs, and the launch of them."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.commands.launch import launch_command_parser, multi_gpu_launcher
from accelerate.utils import patch_environment
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import virnucpro
from virnucpro.errors import Terminated, UsageError, VirnucproError
from virnucpro.runtime.environment import RELAUNCHED
from virnucpro.runtime.rendezvous import LOOPBACK, register_loopback

logger = logging.getLogger(__name__)


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
    # Counting does not start CUDA, which would take memory on the first GPU.
    num_gpus = torch.cuda.device_count()
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


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run the command line in several processes of this machine, and return their exit code.

    A signal to this process goes on to the others, which have half a minute to finish.

    Args:
        num_processes: At least 2.
        arguments: The command line without the program's name.

    Raises:
        VirnucproError: A process was killed.
        KeyboardInterrupt: This process or one of the others was interrupted.
        Terminated: This process or one of the others was terminated.
    """
    # By default each process would start a thread for every core, and slow the others down.
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, torch.get_num_threads() // num_processes)
    options = {
        "num_machines": 1,
        "num_processes": num_processes,
        "rdzv_backend": LOOPBACK,
        # Any free port, for accelerate asks for one; our rendezvous chooses another.
        "main_process_port": 0,
        "num_cpu_threads_per_process": threads,
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    # By its path: `-m virnucpro` would find a stranger's virnucpro/ in the working directory.
    program = str(Path(virnucpro.__file__).with_name("__main__.py"))
    command = [*(f"--{name}={value}" for name, value in options.items()), program]
    # Not by accelerate's own command, which also reads the user's configuration file.
    parsed = launch_command_parser().parse_args([*command, *arguments])
    register_loopback()
    # Sockets of the processes, too, stay within this machine.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    interfaces = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    network = {name: os.environ.get(name, loopback) for name in interfaces}
    with patch_environment(**network, **{RELAUNCHED: str(os.getpid())}), _silence():
        try:
            multi_gpu_launcher(parsed)
        except SignalException as error:
            # The launcher turns signals into an error of its own. The command line knows only ours.
            raise KeyboardInterrupt if error.sigval == signal.SIGINT else Terminated from error
        except ChildFailedError as error:
            return _find_exit_code(error)
    return 0


def _find_exit_code(error: ChildFailedError) -> int:
    """Return the exit code of the process that failed first and ended the others."""
    # A process that only lost the others ends with 1, or the launcher terminates it.
    consequences = (1, Terminated.exit_code, -signal.SIGTERM)
    # In the order in which the launcher noticed them.
    failures = list(error.failures.values())
    # The first process that failed for a reason of its own tells what the user must mend.
    first = next((each for each in failures if each.exitcode not in consequences), failures[0])
    if first.exitcode < 0:
        raise VirnucproError(
            f"process {first.local_rank} was killed ({first.signal_name()}), often because memory "
            "ran out; finished work is kept: run the same command with --resume"
        ) from error
    if first.exitcode == Terminated.exit_code:
        raise Terminated from error
    # What a shell expects after an interrupt.
    if first.exitcode == 130:
        raise KeyboardInterrupt from error
    return int(first.exitcode)


@contextmanager
def _silence() -> Iterator[None]:
    """Silence torch's launcher, because each process reports by itself what ended it."""
    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    # torch would print a table about a failed child, with a traceback that says nothing.
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)

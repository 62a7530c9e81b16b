"""The device of each process: its Accelerator, the precision that it computes in, its memory."""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size

from virnucpro.backend.places import user_cache_dir
from virnucpro.config import ComputeConfig
from virnucpro.errors import MemoryExhaustedError, UsageError, count, first_line
from virnucpro.kernels import describe_attention
from virnucpro.runtime.environment import LAUNCH_VARIABLES, check_launch, num_cores, num_processes
from virnucpro.runtime.orphans import end_with_launcher
from virnucpro.runtime.rendezvous import wait_for_all

if TYPE_CHECKING:
    from virnucpro.backend.interface import Attention

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}

# Processes wait for each other only at the ends of a pass, which may be hours apart. The default of
# torch is minutes. A dead process needs no timeout, because its death ends the launch.
_COLLECTIVE_TIMEOUT = timedelta(days=7)

# A launch may ask for CPUs, or tie processes to cores by these two; no other setting is for us. And
# Accelerate would join the processes of MPI.
_TRAINING_VARIABLE = re.compile(
    r"(FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_.*|ACCELERATE_(?!USE_CPU|CPU_AFFINITY).*"
    r"|PMI_(RANK|SIZE)|MPI_LOCAL.*|(OMPI|MV2)_COMM_WORLD_.*"
)

# Accelerate refuses GPUs on which NCCL needs these. We do not use NCCL.
_NCCL_VARIABLES = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")

_FEW_THREADS = 8

# From glibc's malloc.h. malloc asks the system anew for each block over M_MMAP_THRESHOLD, which can
# be at most 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def make_accelerator(compute: ComputeConfig) -> Accelerator:
    """Return the Accelerator of this process on the device that the settings name.

    In a launch of several processes, Accelerate chooses the GPU of each.

    Raises:
        UsageError: The device does not exist, or this Python process already computes on another,
            or the environment speaks of a launch that is not whole.
        VirnucproError: Not all processes of the launch have come in time.
    """
    device = compute.device
    if compute.expandable_segments:
        # CUDA reads it when it starts, so it must be set before anything uses CUDA.
        by_user = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        os.environ.setdefault("PYTORCH_ALLOC_CONF", by_user)
    # Before torch starts to wait for processes that may never come.
    check_launch()
    # Early, because the launcher may be killed while this process waits for the others.
    end_with_launcher()
    keep_compiled()
    limit_threads()
    wanted = None if device == "auto" else torch.device(device)
    num_gpus = torch.cuda.device_count()
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) >= num_gpus:
        raise UsageError(
            f"device {device}: this machine shows {num_gpus} CUDA GPUs; "
            "choose another, or the device cpu"
        )
    store = wait_for_all(compute.rendezvous_timeout)
    with _settled_variables():
        accelerator = _start_accelerator(wanted, num_gpus)
    # Kept until here: Accelerate has joined it by now.
    del store
    if wanted is not None and wanted.type != accelerator.device.type:
        raise UsageError(
            f"device {device} was asked for, but this process already computes on "
            f"{accelerator.device}; start a new process, or launch for that device"
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def _start_accelerator(wanted: torch.device | None, num_gpus: int) -> Accelerator:
    if wanted is not None and wanted.index is not None and num_processes() == 1:
        # Accelerate's way to name one device. Only a process's first Accelerator reads it.
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(wanted)
        # Our kernels run on torch's current GPU (`can_fuse`).
        torch.cuda.set_device(wanted)
    group = InitProcessGroupKwargs(timeout=_COLLECTIVE_TIMEOUT)
    if num_processes() > 1:
        # Also between GPUs: processes send each other a few small objects, and NCCL would take
        # seconds to start for them.
        group.backend = "gloo"
    try:
        return Accelerator(
            # True also for `auto` without a GPU: otherwise Accelerate takes several processes for
            # several runs of one process.
            cpu=not num_gpus if wanted is None else wanted.type == "cpu",
            kwargs_handlers=[group],
        )
    except ValueError as error:
        names = [name for name in sorted(os.environ) if name.startswith("ACCELERATE_")]
        raise UsageError(
            f"Accelerate does not start here ({first_line(error)}); it reads environment "
            f"variables, of which these are set: {', '.join(names) or 'none of its own'}; "
            "unset what you do not need"
        ) from error


@contextmanager
def _settled_variables() -> Iterator[None]:
    """Hide what Accelerate's launcher, or a user's profile, says about training and NCCL.

    Accelerate would load DeepSpeed, another device or mixed precision for it. All of this concerns
    training, and our own settings decide the rest. A process that is alone needs no launch, either.
    """
    before = dict(os.environ)
    is_alone = num_processes() == 1

    def is_hidden(name: str) -> bool:
        is_known = name in _NCCL_VARIABLES or (is_alone and name in LAUNCH_VARIABLES)
        return is_known or bool(_TRAINING_VARIABLE.fullmatch(name))

    for name in filter(is_hidden, before):
        del os.environ[name]
    os.environ.update(dict.fromkeys(_NCCL_VARIABLES, "1"))
    try:
        yield
    finally:
        # Accelerate itself sets others, which stay.
        for name in filter(is_hidden, list(os.environ)):
            del os.environ[name]
        os.environ.update({name: before[name] for name in filter(is_hidden, before)})


def limit_threads() -> None:
    """Let torch compute in no more threads than this process may use cores.

    OpenMP does not know the limits of containers. The variable OMP_NUM_THREADS goes before.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > num_cores():
        torch.set_num_threads(num_cores())


def keep_compiled() -> None:
    """Keep torch.compile's results in the user's cache, unless the user has named a directory.

    By default, torch keeps them among temporary files, which a restart of the machine deletes. It
    reads the variable when its compiler is imported.
    """
    # The home directory may be unknown or read-only.
    with suppress(OSError, RuntimeError):
        path = user_cache_dir() / "torchinductor"
        path.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(path))
    if "TRITON_CACHE_DIR" in os.environ:
        return
    try:
        Path.home()
    except RuntimeError:
        # Triton would make a directory called ~ here. Nobody else may write to its compiled code.
        directory = tempfile.mkdtemp(prefix="virnucpro-triton-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        os.environ["TRITON_CACHE_DIR"] = directory


def keep_freed_memory() -> None:
    """Let glibc's malloc keep the memory that one batch frees for the next batch.

    By default it returns large blocks to the system, which zeroes and maps them again: that takes a
    tenth of the time of a small model. With other C libraries this does nothing.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        # malloc gives memory back only when 1 GiB at the top of the heap is free.
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


@contextmanager
def few_threads() -> Iterator[None]:
    """Let torch compute on a CPU in few threads, for as long as the body lasts.

    Small products gain nothing by more. Their threads wait for the slowest one in every operation,
    and on a machine that others use too, this takes many times as long as the products.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, _FEW_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_precision(precision: str, accelerator: Accelerator) -> str:
    """Return `precision`, or for `auto` the best that the devices of all processes have.

    That is bf16 from NVIDIA's compute capability 8.0 on, fp16 on older GPUs, and fp32 on a CPU. fp8
    is never chosen automatically.

    Raises:
        UsageError: `precision` is fp8, and this process's device cannot multiply in fp8.
    """
    if precision == "fp8" and not supports_fp8(accelerator.device):
        raise UsageError(
            f"precision fp8 needs an NVIDIA GPU of the Hopper generation or newer, found "
            f"{device_name(accelerator.device)}; use bf16, or fp16 on GPUs before Ampere"
        )
    if precision != "auto":
        return precision
    mine = "fp32"
    if accelerator.device.type == "cuda":
        mine = "bf16" if torch.cuda.get_device_capability(accelerator.device) >= (8, 0) else "fp16"
    # One precision for all processes, because embeddings of different ones are not comparable.
    found = set(gather_object([mine]))
    # The oldest device decides: newer ones can compute in its precision as well.
    return next(choice for choice in ("fp32", "fp16", "bf16") if choice in found)


def supports_fp8(device: torch.device) -> bool:
    """Tell whether a device multiplies in fp8: NVIDIA's Hopper generation and newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch means that a smaller batch may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


@contextmanager
def explaining_memory(message: str) -> Iterator[None]:
    """Say what helps where the body exceeds the memory of the device.

    Raises:
        MemoryExhaustedError: It does.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(message) from error


def measure_free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a GPU."""
    # What torch has reserved but not allocated is not free for others, but free for this process.
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@torch.inference_mode()
def count_affordable(call: Callable[[], object], device: torch.device) -> float:
    """Return how many times a GPU's free memory holds what `call` needs; 0 if not even once."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        call()
    except torch.OutOfMemoryError:
        # The caller's loop can split batches, so this is no error yet.
        return 0.0
    # Not 0, by which nothing can be divided.
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    return measure_free_memory(device) / taken


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_uuid(device: torch.device) -> str | None:
    """Return the UUID of a GPU in the form of NVIDIA's tools; None for a CPU."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def dtype_between(precision: str) -> torch.dtype:
    """Return in what a model computes between its matrix products, such as attention."""
    return torch.bfloat16 if precision == "fp8" else DTYPES[precision]


def describe_computing(device: torch.device, precision: str, attention: str) -> str:
    """Return in one line for people what computes, and in what.

    Args:
        device: Of this process.
        precision: Of the run.
        attention: As in ComputeConfig.
    """
    name = f"cpu ({count(torch.get_num_threads(), 'thread')})"
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    how = describe_attention(cast("Attention", attention), dtype_between(precision), device)
    return f"{name}, {precision}, attention {how}, torch {torch.__version__}"

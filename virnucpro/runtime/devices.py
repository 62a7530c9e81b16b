"""The device of each process, and what it is good for: Accelerate, precision, memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size

from virnucpro.config import ComputeConfig
from virnucpro.errors import UsageError
from virnucpro.runtime.environment import num_processes, user_cache_dir

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}

# The processes wait for each other at the ends of a pass, which may lie hours apart; one that dies
# takes the launch down, so nobody waits for the dead.
_COLLECTIVE_TIMEOUT = timedelta(days=7)

# Of glibc's malloc.h. A block over the second is the system's own; 32 MiB is its upper limit.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def make_accelerator(compute: ComputeConfig) -> Accelerator:
    """Return the Accelerator of this process on the device that the settings name.

    In a launch of several processes, which GPU each one has is Accelerate's choice.

    Raises:
        UsageError: The device is not there, or this Python process already computes on another.
    """
    device = compute.device
    if compute.expandable_segments:
        # Read when CUDA starts, so set before anything touches it.
        by_user = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        os.environ.setdefault("PYTORCH_ALLOC_CONF", by_user)
    keep_compiled()
    wanted = None if device == "auto" else torch.device(device)
    num_gpus = torch.cuda.device_count()
    if wanted is not None and wanted.type == "cuda" and (wanted.index or 0) >= num_gpus:
        raise UsageError(
            f"device {device}: this machine shows {num_gpus} CUDA GPUs; "
            "choose another, or the device cpu"
        )
    if wanted is not None and wanted.index is not None and num_processes() == 1:
        # Accelerate's own way of naming one device; it counts for the first Accelerator only.
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
        torch.cuda.set_device(wanted)
    accelerator = Accelerator(
        # Said even where there is no GPU: Accelerate otherwise makes each process a run of its own.
        cpu=not num_gpus if wanted is None else wanted.type == "cpu",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_COLLECTIVE_TIMEOUT)],
    )
    if wanted is not None and wanted.type != accelerator.device.type:
        raise UsageError(
            f"device {device} was asked for, but this process already computes on "
            f"{accelerator.device}; start a new process, or launch for that device"
        )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def keep_compiled() -> None:
    """Let what torch.compile makes outlast this machine's run, unless the user has named a place.

    Torch's own place is the directory for temporary files, which it notes as soon as its compiler
    is imported.
    """
    with suppress(OSError, RuntimeError):  # the home directory is unknown or read-only
        path = user_cache_dir() / "torchinductor"
        path.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(path))


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what one batch frees, for the next.

    Otherwise it hands large blocks back, and the system zeroes and maps them anew: a tenth of the
    time of a small model. Other C libraries go on as they do.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def choose_precision(precision: str, accelerator: Accelerator) -> str:
    """Return `precision`, or for `auto` the best that every process's device has.

    bf16 from NVIDIA's compute capability 8.0 on, fp16 on older GPUs, fp32 on a CPU.

    Raises:
        UsageError: This process's device cannot multiply in fp8.
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
    # Embeddings of one run share one precision, or they would not be comparable.
    found = set(gather_object([mine]))
    return next(choice for choice in ("fp32", "fp16", "bf16") if choice in found)


def supports_fp8(device: torch.device) -> bool:
    """Tell whether a device multiplies in fp8: NVIDIA's Hopper generation and newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error of torch means that a smaller batch might pass."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def measure_free_memory(device: torch.device) -> int:
    """Return the bytes that this process could still allocate on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@torch.inference_mode()
def count_affordable(call: Callable[[], object], device: torch.device) -> float:
    """Return how often a GPU's free memory holds what `call` takes at its peak; 0 if not once."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        call()
    except torch.OutOfMemoryError:
        return 0.0
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    return measure_free_memory(device) / taken


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_uuid(device: torch.device) -> str | None:
    """Return the UUID of a GPU as NVIDIA's tools write it; None for a CPU."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"

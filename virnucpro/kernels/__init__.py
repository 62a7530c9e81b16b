"""The parts of a transformer: `fused` for NVIDIA GPUs, `onednn` for CPUs, `plain` for any device.

The three modules have functions of the same names. `plain` uses torch alone and is the reference.
`fused` needs Triton: import it only where `can_fuse` returns True. `onednn` works where its
`can_pack` returns True. `flash` is the attention of the package flash-attn.
"""

from __future__ import annotations

import logging
import threading
from typing import Literal

import torch

from virnucpro.backend.interface import Attention
from virnucpro.errors import first_line
from virnucpro.kernels import flash, onednn
from virnucpro.kernels.flash import is_half_on_gpu

logger = logging.getLogger(__name__)

_TRYING = threading.Lock()


def can_fuse(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether `fused` works: half precision, torch's current GPU, Ampere or newer, Triton.

    Triton also needs a C compiler and a writable cache, so one small kernel is compiled and run.
    """
    if (
        not is_half_on_gpu(dtype, device)
        # torch for AMD calls its GPUs "cuda" as well, and these kernels are made for NVIDIA's.
        or torch.version.cuda is None
        or torch.cuda.get_device_capability(device) < (8, 0)
        # Triton starts its kernels on torch's current GPU, whatever the GPU of the tensors.
        or device.index not in (None, torch.cuda.current_device())
    ):
        return False
    try:
        # One thread at a time: Triton starts itself at its first kernel, and has no lock.
        with _TRYING:
            from virnucpro.kernels import fused

            fused.geglu(torch.zeros(1, 16, dtype=dtype, device=device))
    # Compilers, caches and drivers fail in many ways.
    except Exception as error:
        reason = first_line(error, with_file=True)
        logger.warning("Triton does not work here, so torch's own kernels are used (%s)", reason)
        return False
    return True


def choose_attention(
    attention: Attention, *, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Literal["fused", "eager", "sdpa", "flash"]:
    """Return the attention that a model computes with; `auto` is `fused` where it works, or `sdpa`.

    Raises:
        UsageError: `flash` does not work with `dtype` on `device`, or flash-attn is missing.
    """
    if attention == "auto":
        # `fused` cuts each head into two halves.
        return "fused" if head_dim % 2 == 0 and can_fuse(dtype, device) else "sdpa"
    if attention == "flash":
        flash.check(dtype, device)
    return attention


def describe_attention(attention: Attention, dtype: torch.dtype, device: torch.device) -> str:
    """Return for people which attention the built-in models compute with, and why."""
    if attention != "auto":
        return attention
    if can_fuse(dtype, device):
        return "auto: our kernels"
    if onednn.can_pack(dtype, device):
        return "auto: sdpa, products by oneDNN"
    if is_half_on_gpu(dtype, device):
        return "auto: sdpa, because our kernels need compute capability 8.0 and Triton"
    return "auto: sdpa"

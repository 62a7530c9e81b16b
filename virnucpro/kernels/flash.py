"""Attention of packed sequences by the package flash-attn, which users build for their own torch.

Shapes: B sequences in a batch, T tokens of all of them together, H heads, K numbers in a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from virnucpro.errors import UsageError


def is_half_on_gpu(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a model in `dtype` on `device` computes in half precision on a GPU."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def check(dtype: torch.dtype, device: torch.device) -> None:
    """Return if flash-attn is installed and works with `dtype` on `device`.

    Raises:
        UsageError: It is not installed, or needs another precision or device.
    """
    # When a run begins: otherwise it would fail at its first batch, after the input was read.
    if not is_half_on_gpu(dtype, device):
        raise UsageError(
            f"attention flash needs a CUDA GPU and bf16 or fp16, found {device.type} and "
            f"{str(dtype).removeprefix('torch.')}; use attention sdpa, which runs everywhere"
        )
    try:
        import flash_attn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"attention flash needs the package flash-attn, which cannot be imported ({error}); "
            "build it for your torch and CUDA (pip install flash-attn --no-build-isolation), or "
            "use attention sdpa"
        ) from error


def attend(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THK: Tensor,
    offsets: Tensor,
    max_length: int,
    *,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """Return attention (T, H, K) within each sequence; `fused_attention.attend` says of what."""
    # Not at the top, because few installations have it.
    from flash_attn import flash_attn_varlen_func

    attended_THK: Tensor = flash_attn_varlen_func(
        q_THK, k_THK, v_THK, offsets, offsets, max_length, max_length, alibi_slopes=slopes_H
    )
    return attended_THK

"""The parts of a transformer: fused for GPUs, packed for CPUs, plain for everywhere.

`plain` is torch alone and the reference; `fused` is Triton, imported only where `can_fuse` says so;
`onednn` is for CPUs where its `can_pack` says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from virnucpro.errors import first_line

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def can_fuse(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether `fused` works here: half precision, an NVIDIA GPU since Ampere, Triton.

    The GPU has to be torch's current one. One small kernel is compiled and run, since that takes a
    C compiler and a writable cache too.
    """
    import torch

    if (
        device.type != "cuda"
        or torch.version.cuda is None
        or dtype not in (torch.bfloat16, torch.float16)
        or torch.cuda.get_device_capability(device) < (8, 0)
        or device.index not in (None, torch.cuda.current_device())
    ):
        return False
    try:
        from virnucpro.kernels import fused

        fused.geglu(torch.zeros(1, 16, dtype=dtype, device=device))
    except Exception as error:  # compilers, caches and drivers fail in many ways
        reason = first_line(error)
        logger.warning("Triton does not work here, so torch's own kernels are used (%s)", reason)
        return False
    return True

"""Compiles the layers of encoders with torch.compile, where that saves more time than it takes."""

from __future__ import annotations

import itertools
import logging
from typing import cast

import torch
from torch import nn

from virnucpro.backend.interface import Encoder
from virnucpro.errors import UsageError, first_line

logger = logging.getLogger(__name__)

# On an H100, compiling a model takes 5 s. It saves an eighth of the time in bf16 (at 5e14 FLOP/s)
# and an eightieth in float32 (at 5e13 FLOP/s). In both cases this much work earns the 5 s back. The
# figures are in docs/notes/performance.md.
_MIN_FLOP = 2e16


def compile_layers(
    encoder: Encoder, setting: str, *, num_tokens: int, device: torch.device
) -> bool:
    """Compile the encoder's layers if `setting` says so, and return whether it did.

    Layers are the entries of every `nn.ModuleList`; an encoder without one is compiled as a whole.
    torch compiles when the first batch reaches a layer; equal layers share the result, so a model
    of many layers takes no longer to compile than one of few.

    Args:
        encoder: Changed in place.
        setting: `auto`, `on` or `off`.
        num_tokens: All tokens of the pass, finished or not: so a resumed run decides the same.
        device: Where the encoder is.

    Raises:
        UsageError: `setting` is `on`, and compiling does not work here.
    """
    module = cast(nn.Module, encoder)
    if setting == "off":
        return False
    if getattr(encoder, "has_own_kernels", False):
        if setting == "on":
            logger.warning(
                "compile on: nothing is compiled, because the model has its own kernels here; "
                "--attention sdpa does not use them"
            )
        return False
    # Before the test of the compiler, which takes seconds (docs/notes/performance.md).
    if setting == "auto" and not pays(module, num_tokens, device):
        return False
    reason = _find_obstacle(device)
    if reason is not None:
        if setting == "on":
            raise UsageError(
                f"compile on: torch.compile does not work here ({reason}); it needs a C++ "
                "compiler, and on a GPU also Triton. Use auto or off"
            )
        logger.warning("torch.compile does not work here, so nothing is compiled (%s)", reason)
        return False
    # With `auto` the user did not ask for compiling, so a layer that fails to compile runs without.
    torch._dynamo.config.suppress_errors = setting == "auto"
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers] or [module]:
        # Without `dynamic`, torch would compile anew for the shape of nearly every batch.
        layer.compile(dynamic=True)
    return True


def pays(module: nn.Module, num_tokens: int, device: torch.device) -> bool:
    """Return whether compiling saves more time than it takes, for a module and its tokens.

    Only the amount of work decides, not a measured time. So all processes of a run decide the same,
    and a run that resumes it does too.
    """
    # On a CPU, matrix products take nearly all of the time, and compiling does not change them.
    if device.type != "cuda":
        return False
    # Buffers too, because weights in 8 bits are buffers.
    weights = itertools.chain(module.parameters(), module.buffers())
    # A product takes one multiplication and one addition for each weight and token.
    return 2 * sum(weight.numel() for weight in weights) * num_tokens >= _MIN_FLOP


def _find_obstacle(device: torch.device) -> str | None:
    """Return why torch.compile does not work here, or None if it does."""
    try:
        # A small function needs the compiler, driver and cache of a model, and fails like it.
        torch.compile(lambda x: x.sin() + x)(torch.zeros(16, device=device))
    # Compilers, caches and drivers fail in many ways.
    except Exception as error:
        return first_line(error, with_file=True)
    return None

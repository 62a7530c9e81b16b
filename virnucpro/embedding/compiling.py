"""Compiling the layers of encoders with torch.compile, where that saves more time than it takes."""

from __future__ import annotations

import itertools
import logging
from typing import cast

import torch
from torch import nn

from virnucpro.backend.interface import Encoder
from virnucpro.errors import UsageError, first_line

logger = logging.getLogger(__name__)

# On an H100 compiling takes 5 s a model, and then an eighth of the time is saved in bf16 (at 5e14
# FLOP/s) and an eightieth in float32 (at 5e13): won back after so much work in either. The figures
# are in docs/performance.md.
_LEAST_FLOP = 2e16


def compile_layers(
    encoder: Encoder, setting: str, *, num_tokens: int, device: torch.device
) -> bool:
    """Compile the encoder's layers if `setting` says so, and return whether it did.

    Every `nn.ModuleList` is taken for layers, each to be compiled by itself, for any shape, when a
    batch first gets there; an encoder without one is compiled as a whole.

    Args:
        encoder: Changed in place.
        setting: `auto`, `on` or `off`.
        num_tokens: Of the whole pass, finished or not, so that a resumed run decides alike.
        device: Where the encoder is.

    Raises:
        UsageError: `on`, and compiling does not work here.
    """
    module = cast(nn.Module, encoder)
    if setting == "off":
        return False
    if getattr(encoder, "has_own_kernels", False):
        if setting == "on":
            logger.warning(
                "compile on: nothing is compiled, for the model has kernels of its own here; "
                "--attention sdpa does without them"
            )
        return False
    if setting == "auto" and not pays(module, num_tokens, device):
        return False
    reason = _find_obstacle(device)
    if reason is not None:
        if setting == "on":
            raise UsageError(
                f"compile on: torch.compile does not work here ({reason}); it needs a C++ compiler "
                "and on a GPU Triton. Leave the option at auto, or say off"
            )
        logger.warning("torch.compile does not work here, so nothing is compiled (%s)", reason)
        return False
    # Nobody has asked for what `auto` does: what the compiler cannot do is computed without it.
    torch._dynamo.config.suppress_errors = setting == "auto"
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    for layer in [layer for layers in lists for layer in layers] or [module]:
        layer.compile(dynamic=True)
    return True


def pays(module: nn.Module, num_tokens: int, device: torch.device) -> bool:
    """Return whether compiling saves more than it takes, if the module embeds that many tokens.

    Decided from the work alone, not by the clock, so that the processes of a run, and those that
    resume it, come to the same.
    """
    # On a CPU matrix products take nearly all of the time, and there is nothing to save.
    if device.type != "cuda":
        return False
    # Weights in 8 bits are buffers.
    weights = itertools.chain(module.parameters(), module.buffers())
    return 2 * sum(weight.numel() for weight in weights) * num_tokens >= _LEAST_FLOP


def _find_obstacle(device: torch.device) -> str | None:
    """Return why torch.compile does not work here, or None if it does."""
    try:
        torch.compile(lambda x: x.sin() + x)(torch.zeros(16, device=device))
    except Exception as error:  # compilers, caches and drivers fail in many ways
        return first_line(error)
    return None

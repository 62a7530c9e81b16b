"""What modules that are trained have in common."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(module: nn.Module) -> None:
    """Let the layers of a module keep only their inputs, and compute again for the gradients.

    Layers are the entries of `nn.ModuleList`s, as for `torch.compile`.
    """
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for layer in part:
                # Not `use_reentrant`: it would want an input with gradients, and where only
                # adapters are trained, the first layer has none.
                layer.forward = functools.partial(
                    # Nothing is random in a layer, so no state of random numbers is kept.
                    checkpoint,
                    layer.forward,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )

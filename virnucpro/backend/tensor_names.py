"""The names of tensors in a state dict, without what other programs have made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from virnucpro.errors import WeightsError

_OLD_LAYER_NORM = re.compile(r"(.*layer_?norm\w*\.)(gamma|beta)", re.IGNORECASE | re.DOTALL)
_NEW_NAMES = {"gamma": "weight", "beta": "bias"}


def without_wrappers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the names of the modules that wrapped the whole model."""
    # DistributedDataParallel puts the one before all names, and torch.compile the other. Each may
    # wrap the other.
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def with_new_names(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict in which layer norms have `weight` and `bias`, not `gamma` and `beta`.

    TensorFlow's BERT had the old names, and transformers still writes them for some models.

    Raises:
        WeightsError: A layer norm in `path` has a tensor under both names.
    """
    renamed: dict[str, Any] = {}
    for name, tensor in tensors.items():
        old = _OLD_LAYER_NORM.fullmatch(name)
        new = name if old is None else old[1] + _NEW_NAMES[old[2].lower()]
        # Otherwise the last of the two would win, without a word.
        if new in renamed or (old is not None and new in tensors):
            raise WeightsError(f"{path}: holds {new} twice, under its old name and its new one")
        renamed[new] = tensor
    return renamed

"""The tensors of a classifier's file that say what fine-tuning changed in the encoders.

They are named `adapter.`, the encoder's alphabet, and the parameter in the encoder's own module. Of
a `LowRank`, the names end in `.down` and `.up`. `adapter.dna.layers.0.out.weight` replaces a
parameter whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from virnucpro.backend.changes import Change, Changes, LowRank
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.errors import ClassifierError, brief

_PREFIX = "adapter."
_DOWN, _UP = ".down", ".up"


def name_tensors(changes: Mapping[Alphabet, Changes]) -> dict[str, torch.Tensor]:
    """Return the tensors of `changes` by their names in a file, in float32 and sorted."""
    tensors = {}
    for alphabet, of_encoder in changes.items():
        for parameter, change in of_encoder.items():
            name = f"{_PREFIX}{alphabet}.{parameter}"
            if isinstance(change, LowRank):
                tensors[name + _DOWN], tensors[name + _UP] = change
            else:
                tensors[name] = change
    # Copies, because the caller's may be parts of one tensor, and safetensors writes no such thing.
    return {
        name: torch.clone(
            tensors[name].detach().cpu().float(), memory_format=torch.contiguous_format
        )
        for name in sorted(tensors)
    }


def take_changes(path: Path, tensors: dict[str, torch.Tensor]) -> dict[Alphabet, Changes]:
    """Take what changes the encoders out of the tensors of `path`, and return it.

    Whether the encoders have such parameters shows when they are loaded.

    Raises:
        ClassifierError: A tensor has no meaning, does not fit its partner, or holds NaN.
    """
    found: dict[Alphabet, dict[str, Change]] = {}
    pieces: dict[str, dict[str, torch.Tensor]] = {}
    for name in sorted(name for name in tensors if name.startswith(_PREFIX)):
        tensor = tensors.pop(name)
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ClassifierError(
                f"{path}: {brief(name)} holds NaN, infinity or no floating-point numbers; the file "
                "is damaged or its training failed"
            )
        ending = next((one for one in (_DOWN, _UP) if name.endswith(one)), "")
        pieces.setdefault(name.removesuffix(ending), {})[ending] = tensor.float()
    for name, parts in pieces.items():
        alphabet, _, parameter = name.removeprefix(_PREFIX).partition(".")
        known = next((one for one in ALPHABETS if one == alphabet), None)
        if known is None or not parameter or not _is_change(parts):
            shapes = {f"{name}{ending}": tuple(part.shape) for ending, part in parts.items()}
            raise ClassifierError(
                f"{path}: {brief(shapes)} change no parameter of an encoder; wanted a whole one, "
                "or a pair of the shapes (rank, inputs) and (outputs, rank); the file is damaged"
            )
        is_whole = "" in parts
        change = parts[""] if is_whole else LowRank(parts[_DOWN], parts[_UP])
        found.setdefault(known, {})[parameter] = change
    return dict(found)


def _is_change(parts: Mapping[str, torch.Tensor]) -> bool:
    if set(parts) != {_DOWN, _UP}:
        return set(parts) == {""}
    down, up = parts[_DOWN], parts[_UP]
    return down.ndim == up.ndim == 2 and 0 < len(down) == up.shape[1]

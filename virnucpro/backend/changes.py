"""What fine-tuning changes in an encoder: sums of low rank, or whole parameters.

Shapes: I inputs and O outputs of a linear layer, R the rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from virnucpro.errors import WeightsError, brief

# A dry run reads changes, and must not wait for torch.
if TYPE_CHECKING:
    from torch import Tensor


class LowRank(NamedTuple):
    """A matrix of low rank that is added to the weight of a linear layer (Hu et al. 2021).

    Attributes:
        down_RI: float32 (R, I).
        up_OR: float32 (O, R), with the scale of the adapter in it.
    """

    down_RI: Tensor
    up_OR: Tensor


Change: TypeAlias = "LowRank | Tensor"
"""A `LowRank` is added to the parameter; a tensor replaces it."""

Changes: TypeAlias = "Mapping[str, Change]"
"""By the name of the parameter in the encoder's own module, such as `layers.3.qkv.weight`."""


def apply_change(weight: Tensor, change: Change) -> Tensor:
    """Return the changed parameter, in float32 and on the device of `weight`."""
    if not isinstance(change, LowRank):
        return change.to(weight.device).float()
    up_OR, down_RI = (matrix.to(weight.device).float() for matrix in (change.up_OR, change.down_RI))
    # In float32: most of a small change would be lost if the weight were rounded before the sum.
    changed: Tensor = weight.float() + up_OR @ down_RI
    return changed


def check_changes(changes: Changes, shapes: Mapping[str, Sequence[int]]) -> None:
    """Compare changes with the parameters of the encoder that they are for.

    Raises:
        WeightsError: The encoder has no such parameter, or one of another shape.
    """
    for name, change in changes.items():
        shape = _shape_of(change)
        if name not in shapes or shape != tuple(shapes[name]):
            found = f"one of shape {tuple(shapes[name])}" if name in shapes else "no such parameter"
            raise WeightsError(
                f"the classifier changes a parameter {brief(name)} of shape {shape}, and the "
                f"encoder has {found}; give the weights that the classifier was trained with"
            )


def digest_changes(changes: Changes) -> str:
    """Return the SHA-256 of the names, shapes and numbers of all changes."""
    digest = hashlib.sha256()
    for name in sorted(changes):
        for part, tensor in _name_parts(name, changes[name]):
            digest.update(f"{part} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _name_parts(name: str, change: Change) -> Iterator[tuple[str, Tensor]]:
    if isinstance(change, LowRank):
        yield f"{name}.down", change.down_RI
        yield f"{name}.up", change.up_OR
    else:
        yield name, change


def _shape_of(change: Change) -> tuple[int, ...]:
    if isinstance(change, LowRank):
        return change.up_OR.shape[0], change.down_RI.shape[1]
    return tuple(change.shape)

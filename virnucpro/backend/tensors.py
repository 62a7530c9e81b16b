"""Checks tensors from files before anything is made of them: kinds, sizes, names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnucpro.errors import WeightsError, brief, count, name_few

if TYPE_CHECKING:
    import torch


def check_state_dict(path: Path, value: Any) -> dict[str, torch.Tensor]:
    """Return what was read from `path`, if it is a dict of names and ordinary tensors.

    Raises:
        WeightsError: The file holds something else, or a tensor for which it has no room.
    """
    import torch

    if not isinstance(value, Mapping):
        raise WeightsError(f"{path}: a plain state dict was expected, found {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WeightsError(
                f"{path}: a plain state dict was expected, found a dict where {brief(name)} is a "
                f"{type(tensor).__name__}"
            )
    check_sizes(path, value)
    return dict(value)


def check_sizes(path: Path, tensors: Mapping[str, Any]) -> None:
    """Check that the tensors are ordinary, and that the file has room for each.

    Raises:
        WeightsError: A tensor is of another kind, or it would take more memory than the file takes
            on disk: it may repeat one number without end.
    """
    import torch

    num_bytes = path.stat().st_size
    for name, tensor in tensors.items():
        # The shape of sparse and quantized tensors does not tell their memory and arithmetic.
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_quantized:
            raise WeightsError(
                f"{path}: refused, because {name} is no ordinary tensor; save it as one"
            )
        if tensor.numel() * tensor.element_size() > num_bytes:
            raise WeightsError(
                f"{path}: refused, because {name} claims the shape {tuple(tensor.shape)}, "
                f"which does not fit in {num_bytes:,} bytes"
            )


def check_stated_sizes(path: Path, sizes: Mapping[str, int], tensors: Mapping[str, Any]) -> None:
    """Compare the sizes that `path` states with the tensors, before a model of them is built.

    A hostile number of layers would fill the memory even without tensors.

    Raises:
        WeightsError: A size is larger than every dimension, and than the number of tensors.
    """
    # The number of tensors bounds the layers, and the largest dimension bounds every width.
    limit = max([len(tensors), *(max(tensor.shape, default=0) for tensor in tensors.values())])
    for name, size in sizes.items():
        if size > limit:
            raise WeightsError(
                f"{path}: {name} is {brief(size)}, and the tensors have no size above {limit}; "
                "give files that belong together"
            )


def check_tensors(
    path: Path,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    *,
    allow_others: bool = False,
) -> None:
    """Compare the tensors of `path` with the names and shapes that a model needs.

    Raises:
        WeightsError: A tensor is missing, misshapen or not of floating-point numbers, or there is
            another one and `allow_others` is false.
    """
    import torch

    missing = [name for name in shapes if name not in tensors]
    others = [] if allow_others else [name for name in tensors if name not in shapes]
    if missing or others:
        raise WeightsError(
            f"{path}: {_name_some(missing)} missing, {_name_some(others)} of another architecture; "
            "the file is incomplete or of another model"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise WeightsError(f"{path}: {name} should hold floating-point numbers, found {kind}")
        if tensor.shape != tuple(shape):
            raise WeightsError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, and the settings ask for "
                f"{tuple(shape)}; give files that belong together"
            )


def _name_some(names: Sequence[str]) -> str:
    # A name may come from a hostile file, so it is shortened as a value is.
    shown = name_few([brief(name)[1:-1] for name in names])
    return count(len(names), "tensor") + (f" ({shown})" if names else "")

"""The state of a fine-tuning, from which a killed training goes on to the same weights.

It is a safetensors file: tensors, and a text of JSON. Reading it executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from virnucpro.checkpoints.whole_files import replace_when_whole
from virnucpro.errors import CheckpointError, IdentityMismatchError, first_line

_METADATA_KEY = "virnucpro_finetuning"


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: The steps that are done.
        seconds: How long they took, over all runs.
        loss: The sum of the losses of the chunks since the last evaluation.
        num_chunks: How many chunks these were.
        losses: What each evaluation found: step, mean loss of the steps before it, held-out loss
            and AUROC.
        best: Which of the evaluations was the best one, from 1; 0 before the first.
        is_done: Whether the training has ended.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    num_chunks: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    is_done: bool = False


def save_state(
    path: Path, fingerprint: str, progress: Progress, tensors: Mapping[str, Tensor]
) -> None:
    """Write the state of a training.

    Args:
        path: The file; an earlier one is replaced when the new one is whole.
        fingerprint: Tells the training from others.
        progress: How far it has come.
        tensors: Everything else of it.

    Raises:
        OutputError: The file cannot be written.
    """
    from safetensors.torch import save_file

    document = {"fingerprint": fingerprint, **asdict(progress)}
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    with replace_when_whole(path, num_bytes) as temporary:
        save_file(found, temporary, {_METADATA_KEY: json.dumps(document)})


def load_state(
    path: Path, fingerprint: str, shapes: Mapping[str, torch.Size]
) -> tuple[Progress, dict[str, Tensor]]:
    """Return the progress and the tensors of a training.

    Args:
        path: The file.
        fingerprint: What `save_state` was given.
        shapes: The shapes of the tensors.

    Raises:
        CheckpointError: The file is damaged.
        IdentityMismatchError: It is of another training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_METADATA_KEY])
            found = document.pop("fingerprint")
            progress = Progress(**document)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is damaged ({first_line(error)}); remove it, and the fine-tuning begins again"
        ) from error
    if found != fingerprint:
        raise IdentityMismatchError(
            f"{path}: belongs to a fine-tuning with other sequences, weights or settings, or with "
            "another number of processes; repeat those, or begin again with --force"
        )
    if {name: tensor.shape for name, tensor in tensors.items()} != dict(shapes):
        raise CheckpointError(
            f"{path}: lacks tensors, or has others; remove it, and the fine-tuning begins again"
        )
    return progress, tensors

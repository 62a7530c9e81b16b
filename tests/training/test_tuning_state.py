"""The file from which a killed fine-tuning goes on."""

from __future__ import annotations

import pytest
import torch

from virnucpro.errors import CheckpointError, IdentityMismatchError
from virnucpro.training.tuning_state import Progress, load_state, save_state

TENSORS = {"weight.a": torch.arange(6.0).view(2, 3), "exp_avg.a": torch.ones(2, 3)}
SHAPES = {name: tensor.shape for name, tensor in TENSORS.items()}


@pytest.fixture
def path(tmp_path):
    progress = Progress(
        step=20,
        seconds=1.5,
        loss=0.25,
        losses=[{"step": 10, "train": 0.5, "valid": 0.6, "auroc": 0.9}],
        best=1,
    )
    save_state(tmp_path / "state.safetensors", "one", progress, TENSORS)
    return tmp_path / "state.safetensors"


def test_everything_comes_back(path):
    progress, tensors = load_state(path, "one", SHAPES)
    assert progress.step == 20
    assert progress.losses[0]["auroc"] == 0.9
    assert (progress.best, progress.loss, progress.is_done) == (1, 0.25, False)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_another_training_is_refused(path):
    with pytest.raises(IdentityMismatchError, match="other sequences, weights or settings"):
        load_state(path, "another", SHAPES)


def test_other_tensors_are_refused(path):
    with pytest.raises(CheckpointError, match="lacks tensors"):
        load_state(path, "one", SHAPES | {"weight.a": torch.Size([3, 2])})


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"no safetensors at all"])
def test_a_damaged_file_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors: is damaged"):
        load_state(path, "one", SHAPES)

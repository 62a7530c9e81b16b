from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.plugins import TOY_PLUGIN, install_project, run_python
from virnucpro.backend.interface import Backend, Collator, Encoder, Requirement, TokenBatch, Weights
from virnucpro.backend.testing import BackendContract, ToyBackend, toy, write_toy_weights
from virnucpro.backend.testing.toy.model import ToyEncoder
from virnucpro.backend.weights import read_tensors

DOCS = Path(__file__).parents[2] / "docs" / "backends.md"
CODE_BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class TestToyBackend(BackendContract):
    def make_backend(self) -> Backend:
        return ToyBackend()

    def make_weights(self, directory: Path, seed: int) -> str:
        return str(write_toy_weights(directory / "toy.safetensors", seed=seed))


def write_documented_project(directory: Path) -> None:
    """Write the files that docs/backends.md shows."""
    for name, text in CODE_BLOCK.findall(DOCS.read_text()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.slow
def test_the_documented_backend_keeps_the_contract(tmp_path: Path) -> None:
    write_documented_project(tmp_path / "project")
    install_project(tmp_path / "project", tmp_path / "site")
    args = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    child = run_python(*args, sites=[tmp_path / "site"], cwd=tmp_path / "project")
    assert child.returncode == 0, child.stdout
    assert " passed" in child.stdout


def test_the_documented_backend_is_the_shipped_toy(tmp_path: Path) -> None:
    write_documented_project(tmp_path)
    shipped = Path(toy.__file__).parent
    for name in ("__init__.py", "model.py"):
        assert (tmp_path / "toy_backend" / name).read_text() == (shipped / name).read_text()


@pytest.mark.slow
def test_the_toy_plugin_embeds(tmp_path: Path) -> None:
    install_project(TOY_PLUGIN, tmp_path / "site")
    write_toy_weights(tmp_path / "toy.safetensors", embedding_dim=3)
    code = """
import numpy, torch
from virnucpro.backend.registry import load_backend
backend = load_backend("toy").backend
weights = backend.open_weights("toy.safetensors")
batch = backend.load_collator(weights)(numpy.arange(2), ["ACGT", "AC"])
device = torch.device("cpu")
encoder = backend.load_encoder(weights, dtype=torch.float32, device=device, attention="auto")
print(*encoder(batch).shape)
"""
    child = run_python("-c", code, sites=[tmp_path / "site"], cwd=tmp_path)
    assert child.stdout == "2 3\n", child.stderr


@pytest.mark.slow
def test_the_contract_asks_for_pytest(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pytest'] = None;"
        "from virnucpro.backend.testing import BackendContract"
    )
    child = run_python("-c", code, sites=[], cwd=tmp_path)
    assert "pip install pytest" in child.stderr.splitlines()[-1]


class SloppyBackend(ToyBackend):
    """A backend with one fault for each test that has to find it."""

    def token_cost(self, sequence: str) -> int:
        return 1000 // len(sequence)

    def open_weights(self, location: str) -> Weights:
        return replace(super().open_weights(location), identity="always the same")

    def load_collator(self, weights: Weights) -> Collator:
        return lambda rows, sequences: super(SloppyBackend, self).load_collator(weights)(
            np.sort(rows), sequences
        )

    def load_encoder(self, weights: Weights, **settings: Any) -> Encoder:
        torch.manual_seed(0)
        return SloppyEncoder(weights.embedding_dim).to(settings["dtype"])

    def load_trainable(
        self, weights: Weights, *, gradient_checkpointing: bool = False, **settings: Any
    ) -> ToyEncoder:
        encoder = SloppyTrainable(weights.embedding_dim)
        if not gradient_checkpointing:
            encoder.load_state_dict(read_tensors(weights.path))
        return encoder.to(settings["dtype"])


class SloppyTrainable(ToyEncoder):
    def forward(self, batch: TokenBatch) -> torch.Tensor:
        embedding_BE = super().forward(batch)
        if torch.is_autocast_enabled("cpu"):
            embedding_BE = embedding_BE * torch.randn(len(batch.rows), 1)
        return embedding_BE - embedding_BE.mean(0) / 2 - embedding_BE.detach() / 3


class SloppyEncoder(ToyEncoder):
    def forward(self, batch: TokenBatch) -> torch.Tensor:
        embedding_BE = super().forward(batch).double()
        return embedding_BE - embedding_BE.mean(0)


class SloppyContract(TestToyBackend):
    def make_backend(self) -> Backend:
        return SloppyBackend()


@pytest.mark.slow
def test_the_contract_finds_faults() -> None:
    node = f"{__file__}::SloppyContract"
    args = ["-m", "pytest", "-q", "-rf", "-o", "python_classes=SloppyContract", node]
    child = run_python(*args, sites=[], cwd=Path(__file__).parents[2])
    assert set(re.findall(r"^FAILED .*::(test_\w+)", child.stdout, re.MULTILINE)) == {
        "test_module_is_imported_without_torch",
        "test_token_cost_grows_with_length",
        "test_token_cost_is_near_the_truth",
        "test_identity_belongs_to_the_content",
        "test_batch_keeps_rows_and_order",
        "test_collator_works_in_a_spawned_worker",
        "test_embeddings_have_the_promised_form",
        "test_encoder_is_a_module_in_eval_mode",
        "test_embeddings_do_not_depend_on_neighbours",
        "test_weights_decide_the_embeddings",
        "test_bfloat16_is_near_float32",
        "test_a_trainable_model_is_the_encoder",
        "test_gradients_are_the_slopes_of_the_embeddings",
        "test_gradients_do_not_depend_on_neighbours",
        "test_gradient_checkpointing_changes_no_gradient",
        "test_adapters_are_merged_into_the_encoder",
        "test_whole_parameters_are_replaced",
        "test_changes_that_do_not_fit_are_refused",
        "test_gradients_under_autocast",
    }


def test_the_contract_wants_files_of_weights(tmp_path: Path) -> None:
    class Weightless(TestToyBackend):
        def make_weights(self, directory: Path, seed: int) -> str:
            return "none"

    with pytest.raises(
        AssertionError, match=r"make_weights wrote no file .* let a file of settings decide"
    ):
        Weightless()._make_location(tmp_path / "weights", seed=0)


def test_the_contract_wants_the_packages_that_the_backend_needs() -> None:
    class Lacking(ToyBackend):
        info = replace(ToyBackend.info, needs=(Requirement("no-such", "toy[big]"),))

    with pytest.raises(AssertionError, match="needs the package no-such, which is not installed"):
        TestToyBackend().test_info_is_sane(Lacking())

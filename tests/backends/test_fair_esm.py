"""The reference backend computes what fair-esm computes, and what our own ESM-2 computes."""

from __future__ import annotations

import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from virnucpro_esm2 import backend as esm2
from virnucpro_fair_esm import backend

from tests.backends.test_esm2 import embed_by_fair_esm, largest_difference, make_proteins
from tests.runs import assert_tables_equal_but_for_rounding, write_reads
from tools.make_esm2_weights import make_config, write_fair_esm, write_transformers
from virnucpro import PredictConfig, predict
from virnucpro.backend.interface import Backend
from virnucpro.backend.testing import BackendContract
from virnucpro.errors import UsageError, WeightsError

pytestmark = pytest.mark.slow

# What is wrong with a file is told without the package; all else needs it.
needs_fair_esm = pytest.mark.skipif(not find_spec("esm"), reason="fair-esm is not installed")


@needs_fair_esm
class TestFairEsmContract(BackendContract):
    def make_backend(self) -> Backend:
        return backend

    def make_weights(self, directory: Path, seed: int) -> str:
        return str(write_fair_esm(directory / "esm2_test.pt", make_config(), seed=seed))


def embed(one: Backend, path: Path, sequences: list[str]) -> torch.Tensor:
    weights = one.open_weights(str(path))
    encoder = one.load_encoder(
        weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
    )
    batch = one.load_collator(weights)(np.arange(len(sequences)), sequences)
    with torch.inference_mode():
        return encoder(batch)


@needs_fair_esm
def test_the_numbers_are_those_of_fair_esm_and_of_esm2(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2.pt", make_config(), contact_regression=True)
    proteins = [*make_proteins((166, 1, 1200, 33)), "MKXBUZO"]
    found_BE = embed(backend, path, proteins)
    assert largest_difference(found_BE, embed_by_fair_esm(path, proteins)) < 1e-6
    assert largest_difference(embed(esm2, path, proteins), found_BE) < 1e-5


@needs_fair_esm
def test_a_whole_run_can_compute_as_the_original(demo_weights, tmp_path: Path) -> None:
    reads = write_reads(tmp_path / "reads.fa", 12)
    # As the published classifiers, it does not say which backends it was trained on.
    head = tmp_path / "500_model.pth"
    torch.save(load_file(demo_weights["model_path"]), head)
    for name in ("esm2", "fair-esm"):
        config = PredictConfig(
            inputs=(str(reads),),
            output_dir=tmp_path / name,
            device="cpu",
            protein_backend=name,
            **(demo_weights | {"model_path": head}),
        )
        predict(config)
    assert_tables_equal_but_for_rounding(tmp_path / "fair-esm", tmp_path / "esm2")


def test_what_is_no_file_of_fair_esm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"esm2_t36_3B_UR50D\.pt$"):
        backend.open_weights("facebook/esm2_t36_3B_UR50D")
    directory = tmp_path / "transformers"
    directory.mkdir()
    write_transformers(directory, make_config())
    with pytest.raises(WeightsError, match="no such file"):
        backend.open_weights(str(directory))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="is no ESM-2 as fair-esm publishes it"):
        backend.open_weights(str(tmp_path / "other.pt"))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"cfg": Bomb(), "model": {}}, tmp_path / "bomb.pt", pickle_module=pickle)
    with pytest.raises(WeightsError, match="refused"):
        backend.open_weights(str(tmp_path / "bomb.pt"))


@needs_fair_esm
def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2.pt", make_config())
    document = torch.load(path, weights_only=False)
    name = next(name for name in document["model"] if "layers.1.fc1.weight" in name)
    del document["model"][name]
    torch.save(document, path)
    with pytest.raises(WeightsError, match=r"layers\.1\.fc1\.weight"):
        embed(backend, path, ["MK"])


def test_without_fair_esm_the_extra_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_fair_esm(tmp_path / "esm2.pt", make_config())
    monkeypatch.setitem(sys.modules, "esm", None)
    with pytest.raises(UsageError, match=r"needs the package fair-esm, .*virnucpro\[reference\]'`"):
        backend.open_weights(str(path))


@needs_fair_esm
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"])
def test_fair_esm_has_one_attention(tmp_path: Path, attention: str) -> None:
    weights = backend.open_weights(str(write_fair_esm(tmp_path / "esm2.pt", make_config())))
    with pytest.raises(UsageError, match="its own attention"):
        backend.load_encoder(
            weights, dtype=torch.float32, device=torch.device("cpu"), attention=attention
        )

"""Models: a backend with its weights."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from huggingface_hub import constants

from tests.finetuned import make_changes
from virnucpro.backend.changes import digest_changes
from virnucpro.backend.registry import LoadedBackend
from virnucpro.backend.testing import ToyBackend
from virnucpro.config import MINI_DIRECTORY, ComputeConfig, FrameRule
from virnucpro.config.published import ESM2_3B, find_weights
from virnucpro.embedding import models
from virnucpro.embedding.models import HeldModel, Model, open_model, refuse_changes
from virnucpro.errors import BackendError, UsageError, WeightsError
from virnucpro.runtime.run import open_run


@pytest.fixture
def model(demo_weights: dict[str, str]) -> Model:
    return open_model("dnabert-s", demo_weights["dna_weights"])


def test_a_model_is_described_and_makes_identities(model: Model, demo_weights) -> None:
    description = model.describe()
    assert description["name"] == "dnabert-s"
    assert description["distribution"] == "virnucpro"
    assert description["weights"] == demo_weights["dna_weights"]
    assert description["embedding_dim"] == 48
    identity = model.make_identity("sha256:11", "bf16", 300)
    assert identity.weights_identity == description["weights_identity"] == model.weights.identity
    assert identity.backend_version == description["version"]
    assert (identity.input_digest, identity.precision) == ("sha256:11", "bf16")
    assert (identity.chunk_length_bp, identity.embedding_dim) == (300, 48)
    assert identity.frame_rule == "open"
    rule = FrameRule("stretches", 4, 15)
    assert model.make_identity("sha256:11", "bf16", 300, rule).frame_rule == "stretches:4:15"


def test_a_backend_that_knows_no_fp8_computes_in_bf16(model, demo_weights) -> None:
    other = open_model("esm2", demo_weights["protein_weights"])
    assert [model.compute_precision(each) for each in ("fp8", "fp16")] == ["bf16", "fp16"]
    assert other.compute_precision("fp8") == "fp8"
    assert [each.min_tokens("fp8") > 0 for each in (model, other)] == [False, True]
    assert other.min_tokens("bf16") == 0
    assert model.make_identity("sha256:11", "fp8", 300).precision == "bf16"
    assert other.make_identity("sha256:11", "fp8", 300).precision == "fp8"


HOW = (torch.device("cpu"), "fp32", "auto")


def test_what_is_loaded_ahead_is_handed_out_once(model: Model) -> None:
    model.load_ahead(*HOW)
    ahead = weakref.ref(model.load_encoder(*HOW))
    # Nothing else holds it, or two models would have to share a GPU's memory.
    gc.collect()
    assert ahead() is None
    rows = np.arange(2)
    batch = model.load_collator()(rows, ["ACGTACGT", "GGC"])
    model.load_ahead(*HOW)
    embeddings = [model.load_encoder(*HOW)(batch) for _ in range(2)]
    assert torch.equal(*embeddings)


@pytest.mark.gpu
def test_a_gpu_without_a_number_is_loaded_ahead_too(model: Model) -> None:
    # A run on one GPU has the device `cuda`; the thread that loads needs a number.
    how = (torch.device("cuda"), "fp32", "auto")
    batch = send_to_device(model.load_collator()(np.arange(2), ["ACGTACGT", "GGC"]), how[0])
    model.load_ahead(*how)
    embeddings = [model.load_encoder(*how)(batch) for _ in range(2)]
    assert torch.equal(*embeddings)


def test_an_error_in_loading_ahead_comes_when_the_encoder_is_wanted(model: Model) -> None:
    model.load_ahead(torch.device("cpu"), "fp32", "flash")
    with pytest.raises(UsageError, match="flash"):
        model.load_encoder(torch.device("cpu"), "fp32", "flash")


def test_models_that_are_not_there() -> None:
    with pytest.raises(BackendError, match="Did you mean 'dnabert-s'"):
        open_model("dnabert_s", "nowhere")
    with pytest.raises(WeightsError, match="nowhere: no such file or directory"):
        open_model("dnabert-s", "nowhere")


def test_weights_may_have_the_name_of_a_published_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for backend, directory in (("esm2", "esm2"), ("dnabert-s", "dnabert_s")):
        opened, wanted = (
            open_model(backend, at) for at in ("mini", str(MINI_DIRECTORY / directory))
        )
        assert opened.weights == wanted.weights
    assert find_weights("esm2-3b", "esm2") == ESM2_3B.location
    # It has no weights for this backend, and a classifier has none at all.
    assert find_weights("mini", "toy") == "mini"
    assert find_weights("500", "esm2") == "500"
    Path("esm2-3b").mkdir()
    assert find_weights("esm2-3b", "esm2") == "esm2-3b"


class PanicException(BaseException):
    """What Rust's panics become in Python."""


@pytest.mark.parametrize("error", [PanicException("index out of bounds"), ZeroDivisionError("x")])
def test_whatever_breaks_in_opening_becomes_an_error_of_ours(model, monkeypatch, error) -> None:
    def open_weights(self: object, location: str) -> None:
        raise error

    monkeypatch.setattr(type(model.backend), "open_weights", open_weights)
    with pytest.raises(WeightsError, match=f"there: cannot be opened .*{type(error).__name__}"):
        open_model("dnabert-s", "there")


def test_what_is_no_weights_is_refused(model, monkeypatch) -> None:
    monkeypatch.setattr(type(model.backend), "open_weights", lambda self, location: location)
    with pytest.raises(BackendError, match="of backend dnabert-s returned 'there', and Weights"):
        open_model("dnabert-s", "there")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"identity": ""}, "identity '', and a digest"),
        ({"identity": None}, "identity None, and a digest"),
        ({"embedding_dim": 0}, "embedding_dim 0, and a positive integer"),
        ({"embedding_dim": 768.0}, "embedding_dim 768.0, and a positive integer"),
    ],
)
def test_weights_that_say_too_little_are_refused(model, monkeypatch, change, found) -> None:
    wrong = dataclasses.replace(model.weights, **change)
    monkeypatch.setattr(type(model.backend), "open_weights", lambda self, location: wrong)
    with pytest.raises(
        BackendError, match=f"of backend dnabert-s returned Weights with the {found}"
    ):
        open_model("dnabert-s", "there")


def test_an_interrupt_in_opening_stays_one(model, monkeypatch) -> None:
    def open_weights(self: object, location: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.backend), "open_weights", open_weights)
    with pytest.raises(KeyboardInterrupt):
        open_model("dnabert-s", "there")


def test_an_unpinned_default_in_the_hubs_cache_is_used_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("VIRNUCPRO_MODELS", str(tmp_path / "models"))
    repository, revision = ESM2_3B.location.split("@")
    cache = tmp_path / f"models--{repository.replace('/', '--')}"
    with pytest.raises(WeightsError, match=revision):
        open_model("esm2", ESM2_3B.location)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("a" * 40)
    shutil.copytree(MINI_DIRECTORY / "esm2", cache / "snapshots" / ("a" * 40))
    assert open_model("esm2", ESM2_3B.location).weights.location == repository
    assert "the newest revision there is used" in caplog.text
    shutil.copytree(MINI_DIRECTORY / "esm2", cache / "snapshots" / revision)
    assert open_model("esm2", ESM2_3B.location).weights.location == ESM2_3B.location


def test_changes_are_part_of_what_a_model_is(demo_weights) -> None:
    location = demo_weights["dna_weights"]
    changes = make_changes(0)["dna"]
    plain, changed = (open_model("dnabert-s", location, None, each) for each in (None, changes))
    assert "changes_identity" not in plain.describe()
    assert changed.describe() == plain.describe() | {"changes_identity": digest_changes(changes)}
    identities = [one.make_identity("sha256:11", "fp32", 300) for one in (plain, changed)]
    assert identities[0].weights_identity == plain.weights.identity
    assert identities[1].weights_identity == f"{plain.weights.identity}+{digest_changes(changes)}"


def test_changes_are_digested_once(demo_weights, monkeypatch) -> None:
    changes, digested = make_changes(0)["dna"], []
    monkeypatch.setattr(
        models, "digest_changes", lambda one: digested.append(one) or digest_changes(one)
    )
    with open_run(ComputeConfig(device="cpu")) as run:
        model = open_model("dnabert-s", demo_weights["dna_weights"], run, changes)
    held = HeldModel.of(model)
    assert held.identity == model.identity == f"{model.weights.identity}+{digest_changes(changes)}"
    assert digested == [changes]


def test_a_backend_that_cannot_change_its_weights_is_named() -> None:
    class OlderBackend(ToyBackend):
        info = dataclasses.replace(ToyBackend.info, linear_layers=())

    changes = {"mix.bias": torch.ones(16)}
    refuse_changes(LoadedBackend(ToyBackend(), "toy", "virnucpro", "0"), changes)
    older = LoadedBackend(OlderBackend(), "toy", "virnucpro", "0")
    refuse_changes(older, None)
    with pytest.raises(UsageError, match="backend toy cannot do that; `virnucpro backends` lists"):
        refuse_changes(older, changes)

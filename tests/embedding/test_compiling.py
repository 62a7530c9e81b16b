"""Compiled encoders: the same numbers from a handful of graphs, and what is compiled is kept."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from virnucpro_dnabert_s.weights import load_model
from virnucpro_esm2.tokens import Esm2Collator

from tools.make_dnabert_s_weights import make_config as make_dnabert_s_config
from tools.make_dnabert_s_weights import write_weights
from tools.make_esm2_weights import make_config, make_random_model, write_fair_esm
from virnucpro.backend.interface import TokenBatch
from virnucpro.config import PredictConfig
from virnucpro.embedding.compiling import compile_layers, pays
from virnucpro.workflows.predict import predict

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")

# As batches come: many of a length, a few of several, single ones.
EARLY_LENGTHS = ([40] * 3, [9, 8, 8], [1], [2] * 30)
LATE_LENGTHS = ([41] * 3, [60, 33, 2], [70], [5] * 12, [7, 7], [1, 1], [100, 3], [3])

# Of the first layer, which has nothing to add yet, and of the others; of one sequence, and of more.
MOST_GRAPHS = 4


@pytest.fixture(autouse=True)
def stats(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, int]]:
    """Keep what is compiled for these tests, and for them alone; return what torch counts."""
    # Only now: of all processes that collect this file, one runs it. The compiler takes 2 seconds.
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor

    directory = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory))
    torch._dynamo.reset()
    counters.clear()
    # The vector instructions that this machine names do work: trying them out takes seconds.
    with inductor.patch({"cpp.vec_isa_ok": True}):
        yield counters["stats"]


def make_esm2_batch(lengths: list[int]) -> TokenBatch:
    letters = random.Random(0)
    proteins = ["".join(letters.choices("ACDEFGHIKLMNPQRSTVWY", k=length)) for length in lengths]
    return Esm2Collator()(np.arange(len(proteins)), proteins)


def make_dnabert_s_batch(lengths: list[int]) -> TokenBatch:
    lengths_B = torch.tensor(lengths) + 2
    generator = torch.Generator().manual_seed(0)
    return TokenBatch(
        token_ids_T=torch.randint(9, 100, (int(lengths_B.sum()),), generator=generator),
        lengths_B=lengths_B,
        max_length=int(lengths_B.max()),
        rows=np.arange(len(lengths)),
    )


def largest_difference(found_BE: torch.Tensor, wanted_BE: torch.Tensor) -> float:
    """Return the worst sequence's largest difference, relative to its largest entry."""
    difference_B = (found_BE - wanted_BE).abs().amax(1) / wanted_BE.abs().amax(1)
    return float(difference_B.max())


@pytest.mark.parametrize("name", ["esm2", "dnabert-s"])
def test_ragged_batches_share_a_few_graphs(
    name: str, tmp_path: Path, stats: Mapping[str, int]
) -> None:
    if name == "esm2":
        encoder: nn.Module = make_random_model(make_config(3, 40, 2), device=CPU, attention="auto")
        make = make_esm2_batch
    else:
        config = make_dnabert_s_config(num_layers=3, feed_forward=192)
        path = write_weights(tmp_path, config)
        encoder = load_model(path, dtype=torch.float32, device=CPU, attention="sdpa")
        make = make_dnabert_s_batch
    early, late = ([make(lengths) for lengths in some] for some in (EARLY_LENGTHS, LATE_LENGTHS))
    with torch.inference_mode():
        wanted = [encoder(batch) for batch in early + late]
        assert compile_layers(encoder, "on", num_tokens=1, device=CPU)
        before = stats["unique_graphs"]
        found = [encoder(batch) for batch in early]
        num_graphs = stats["unique_graphs"] - before
        assert 1 <= num_graphs <= MOST_GRAPHS
        found += [encoder(batch) for batch in late]
    assert stats["unique_graphs"] - before == num_graphs
    for found_BE, wanted_BE in zip(found, wanted, strict=True):
        assert largest_difference(found_BE, wanted_BE) < 2e-5


class Layers(nn.Module):
    """Two layers of 3 parameters each."""

    def __init__(self, *, has_own_kernels: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 1) for _ in range(2))
        self.has_own_kernels = has_own_kernels


def test_auto_compiles_much_work_on_a_gpu_alone() -> None:
    encoder = Layers(has_own_kernels=False)
    gpu = torch.device("cuda")
    assert pays(encoder, 2 * 10**15, gpu)
    assert not pays(encoder, 10**15, gpu)
    assert not pays(encoder, 2 * 10**15, CPU)


def test_weights_in_8_bits_count_as_any() -> None:
    encoder = Layers(has_own_kernels=False)
    for layer in encoder.layers:
        weight = layer.weight.data
        del layer.weight
        layer.register_buffer("weight", weight.to(torch.float8_e4m3fn))
    assert pays(encoder, 2 * 10**15, torch.device("cuda"))


@pytest.mark.parametrize(("setting", "is_told"), [("auto", False), ("on", True)])
def test_own_kernels_are_left_alone(
    setting: str, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Layers(has_own_kernels=True)
    assert not compile_layers(encoder, setting, num_tokens=10**18, device=torch.device("cuda"))
    assert ("--attention sdpa" in caplog.text) == is_told


def test_a_run_says_what_was_compiled_and_keeps_it(demo_weights, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fasta = tmp_path / "records.fa"
    fasta.write_text(">record\n" + "ATGGCTGCACTGAAAGCT" * 30 + "\n")
    for setting, expected in (("auto", False), ("on", True)):
        output_dir = tmp_path / setting
        result = predict(
            PredictConfig(
                inputs=fasta,
                output_dir=output_dir,
                device="cpu",
                attention="sdpa",
                compile=setting,
                **demo_weights,
            )
        )
        run = json.loads(result.directory.run_json.read_text())
        flags = [one["compiled"] for processes in run["passes"].values() for one in processes]
        assert flags == [expected] * 2
        assert any((tmp_path / "cache" / "virnucpro" / "torchinductor").iterdir()) == expected


def test_no_compiler(tmp_path: Path) -> None:
    fasta = tmp_path / "protein.fa"
    fasta.write_text(">p\nMKVLAAGIVGLLLAQWERTYIPASDFGHK\n")
    weights = write_fair_esm(tmp_path / "esm2_test.pt", make_config(1, 40, 2))
    command = (
        f"{sys.executable} -m virnucpro embed {fasta} --backend esm2 --weights {weights} "
        f"-o {tmp_path / 'protein.h5'} --device cpu --attention sdpa --compile on"
    )
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": "/nonexistent"}
    run = subprocess.run(
        command.split(), env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "Error: compile on: torch.compile does not work here" in run.stderr
    assert not (tmp_path / "protein.h5").exists()

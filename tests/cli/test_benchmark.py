"""`virnucpro benchmark` and `virnucpro profile`, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.plugins import install_module
from tests.runs import write_reads
from virnucpro.cli.main import main

pytestmark = pytest.mark.slow

PLUGIN = """
import dataclasses, torch
from virnucpro.backend.testing.toy import ToyBackend

class Backend(ToyBackend):
    info = dataclasses.replace(ToyBackend.info, name="faulty")

    def load_encoder(self, weights, *, dtype, device, attention, changes=None):
        encoder = super().load_encoder(
            weights, dtype=dtype, device=device, attention=attention, changes=changes
        )
        if dtype == torch.float16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if dtype == torch.bfloat16:
            encoder.mix.weight.data.neg_()
        return encoder

backend = Backend()
"""


def benchmark(*options: object) -> Result:
    return invoke("benchmark", "--quick", *options)


def profile(*options: object) -> Result:
    return invoke("profile", *options)


def invoke(command: str, *options: object) -> Result:
    return CliRunner().invoke(main, [command, "--device=cpu", *map(str, options)])


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a benchmark of everything writes."""
    directory = tmp_path_factory.mktemp("benchmark") / "out"
    done = benchmark("--json", "-o", directory)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((directory / "benchmark.json").read_text())
    return directory


def test_both_models_are_measured_beside_other_implementations(output_dir: Path) -> None:
    report = json.loads((output_dir / "benchmark.json").read_text())
    assert report["device"] == "cpu"
    assert report["ceilings"]["flop_per_s"]["fp32"] > 0
    assert report["ceilings"]["copy_bytes_per_s"] > 0
    lines = [(line["model"], line["implementation"], line["length_bp"]) for line in report["lines"]]
    assert lines == [
        ("dnabert-s small", "virnucpro, auto", 500),
        ("dnabert-s small", "virnucpro, auto", 150),
        ("dnabert-s small", "one frame at a time", 500),
        ("esm2 8M", "virnucpro, auto", 500),
        ("esm2 8M", "virnucpro, auto", 150),
        ("esm2 8M", "fair-esm", 500),
        ("esm2 8M", "transformers EsmModel, sdpa", 500),
    ]
    for line in report["lines"]:
        assert line["tokens_per_s"] > line["sequences_per_s"] > 0
        flop_per_s = line["tokens_per_s"] * line["flop_per_token"]
        best = report["ceilings"]["flop_per_s"][line["precision"]]
        assert line["ceiling_share"] == pytest.approx(flop_per_s / best)
        assert line["worst_cosine"] == pytest.approx(1, abs=1e-5)
        assert not line["note"]


def test_the_table_says_the_same(output_dir: Path) -> None:
    report = json.loads((output_dir / "benchmark.json").read_text())
    text = (output_dir / "benchmark.txt").read_text()
    for line in report["lines"]:
        assert f"{line['tokens_per_s']:,.0f}" in text
    assert "worst cosine" in text
    assert "GiB" not in text  # only GPUs count what is allocated


def test_one_model_is_compared_with_an_earlier_report(
    demo_weights: Mapping[str, str], tmp_path: Path
) -> None:
    options = ["--backend=esm2", f"--weights={demo_weights['protein_weights']}"]
    options += ["--no-vanilla-baseline", "--json"]
    first = json.loads(benchmark(*options, "--suite=throughput").stdout)
    (tmp_path / "earlier.json").write_text(json.dumps(first))
    # The fork's users say scaling.
    done = benchmark(*options, "--suite=scaling", f"--compare-to={tmp_path / 'earlier.json'}")
    assert done.exit_code == 0, done.stderr
    assert "--suite scaling: measured as throughput" in done.stderr
    found = json.loads(done.stdout)["lines"]
    assert len(found) == 2
    for line, before in zip(found, first["lines"], strict=True):
        assert line["worst_cosine"] is None
        assert line["change"] == pytest.approx(line["tokens_per_s"] / before["tokens_per_s"] - 1)
    (tmp_path / "earlier.json").write_text('{"lines": [{}]}')
    done = benchmark(*options, f"--compare-to={tmp_path / 'earlier.json'}")
    assert done.exit_code == 2
    assert "earlier.json: is not a benchmark.json (KeyError: " in done.stderr


@pytest.mark.parametrize(
    ("precision", "code", "message"),
    [
        ("fp32", 0, ""),
        ("bf16", 1, "further from float32 than it should be: faulty toy.safetensors in bf16"),
        ("fp16", 2, "out of memory: faulty toy.safetensors in fp16"),
    ],
)
def test_the_exit_code_tells_what_is_wrong(
    precision: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from virnucpro.backend.testing.toy.model import write_toy_weights

    install_module(tmp_path / "site", PLUGIN, "faulty-backend", name="faulty")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    write_toy_weights(tmp_path / "toy.safetensors")
    command = ["benchmark", "--suite=equivalence", "--json"]
    options = ["--model=faulty", "--weights=toy.safetensors", f"--precision={precision}"]
    done = invoke(*command, *options)
    assert done.exit_code == code, done.stderr
    assert message in done.stderr
    assert [line["is_off"] for line in json.loads(done.stdout)["lines"]] == [code == 1]
    if code == 0:
        without_weights = invoke(*command, "--backend=faulty")
        assert without_weights.exit_code == 2
        assert "give some with --weights" in without_weights.stderr
    if code == 2:
        profiled = profile(*options)
        assert profiled.exit_code == 4
        assert "do not fit the memory of cpu" in profiled.stderr


def test_a_launch_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = profile("-m=esm2", "--min-batch=512")
    assert done.exit_code == 2
    assert "profile measures one device" in done.stderr


def test_empty_records_cannot_be_measured(demo_weights: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty.fa").write_text(">a\n>b\n")
    options = ["--backend=dnabert-s", f"--weights={demo_weights['dna_weights']}"]
    done = profile(*options, f"--test-file={tmp_path / 'empty.fa'}")
    assert done.exit_code == 1
    assert "empty.fa: holds empty records only; give some with sequences" in done.stderr


def embed(output: Path, weights: str, reads: Path) -> tuple[str, np.ndarray[Any, Any]]:
    """Return what a run says and the embeddings that it writes."""
    options = ("--backend=dnabert-s", f"--weights={weights}", "-o", output)
    done = invoke("embed", reads, *options)
    assert done.exit_code == 0, done.stderr
    with h5py.File(output) as file:
        return done.stderr, file["embeddings"][:]


def test_a_run_takes_the_budget_that_profile_stored(
    demo_weights: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = demo_weights["dna_weights"]
    reads = write_reads(tmp_path / "reads.fa", 60)
    budgets = tmp_path / "budgets.json"
    monkeypatch.setenv("VIRNUCPRO_BUDGETS", str(budgets))
    # Of a second: the figures need not be good.
    monkeypatch.setattr("virnucpro.workflows.profile._SECONDS_PER_BUDGET", 0.05)
    said, wanted = embed(tmp_path / "before.h5", weights, reads)
    assert "of up to 2,048 tokens" in said

    options = [
        "--model=dnabert-s",
        f"--weights={weights}",
        "--min-batch=100",
        "--max-batch=300",
        "--step=100",
        f"--test-file={reads}",
    ]
    refused = profile(*options, "--output=/dev/null", "--force")
    assert refused.exit_code == 1
    assert "/dev/null: cannot be written (it exists, and is no ordinary file)" in refused.stderr
    assert budgets.exists()

    options.append(f"--output={tmp_path / 'link.json'}")
    (tmp_path / "link.json").symlink_to("profile.json")
    done = profile(*options)
    assert done.exit_code == 0, done.stderr
    again = profile(*options)
    assert again.exit_code == 2
    assert "link.json: exists already; overwrite it with --force" in again.stderr
    document = json.loads((tmp_path / "profile.json").read_text())
    assert [each["batch_tokens"] for each in document["measurements"]] == [100, 200, 300]
    assert all(each["tokens_per_s"] > 0 for each in document["measurements"])
    best = document["best_batch_tokens"]
    assert f"Best: {best} tokens a batch" in done.stdout

    said, found = embed(tmp_path / "after.h5", weights, reads)
    assert f"of up to {best:,} tokens" in said
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)

    budgets.write_text("{")
    said, found = embed(tmp_path / "broken.h5", weights, reads)
    assert "ignored (" in said
    assert "of up to 2,048 tokens" in said
    np.testing.assert_array_equal(found, wanted)


def test_a_backend_without_weights_of_its_own_asks_for_some() -> None:
    done = profile("--model=transformers")
    assert done.exit_code == 2
    assert "which weights?" in done.stderr

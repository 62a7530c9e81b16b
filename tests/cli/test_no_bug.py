"""Strange inputs, files and environments: whatever they lead to, it is never called a bug."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_bad_input import GOOD, make_fasta
from tests.sequences.test_gunzip import BGZIP_END, make_bgzip
from virnucpro.config import MINI_DIRECTORY

pytestmark = pytest.mark.slow

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
WEB_PAGE = b"<!DOCTYPE html><html>Sign in</html>"
TAR = b"contigs.fa".ljust(257, b"\0") + b"ustar\0" + b"\0" * 249
CONTENTS = {
    "nothing": b"",
    "pointer": POINTER,
    "page": WEB_PAGE,
    "tar": TAR,
    "zip": b"PK\3\4" + b"\0" * 60,
    "text": b"Dear all,\n",
    "gzip": gzip.compress(GOOD),
    "pickle": b"\x80\x04K\x01.",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("good.fa").write_bytes(make_fasta(2))
    return tmp_path


def complain(*words: object) -> str:
    """Return what a command says that has to fail, after comparing it with what nobody may see."""
    code, text = try_out(*words)
    assert code in (1, 2), text
    return text


def try_out(*words: object) -> tuple[int, str]:
    from click.testing import CliRunner

    from virnucpro.cli.main import main

    result = CliRunner().invoke(main, list(map(str, words)))
    assert "This is a bug in virnucpro" not in result.output
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def predict_mini(*words: object) -> tuple[int, str]:
    return try_out("predict", "-m", "mini", "-d", "cpu", "-o", "out", "--force", *words)


@pytest.mark.parametrize("kind", CONTENTS)
def test_any_content_in_any_place(here: Path, kind: str) -> None:
    """One file as input, classifier, weights, settings, truth, table, run, embeddings and parts."""
    path = here / "file"
    path.write_bytes(CONTENTS[kind])
    code, _ = predict_mini(path)
    assert code == (0 if kind == "gzip" else 1)
    for option in ("-p", "--dna-weights", "--protein-weights"):
        complain("predict", "good.fa", "-m", "mini", "-d", "cpu", "-o", "o", option, path)
    try_out("predict", "good.fa", "-c", path)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"):
        directory = shutil.copytree(MINI_DIRECTORY / "dnabert_s", here / name.replace(".", "_"))
        if name == "pytorch_model.bin":
            (directory / "model.safetensors").unlink()
        (directory / name).write_bytes(CONTENTS[kind])
        embed = ["embed", "good.fa", "--backend", "dnabert-s", "-d", "cpu", "-o", "e.h5"]
        complain(*embed, "--weights", directory)
    complain("embed", path, "--backend", "esm2", "--weights", path, "-o", "e.h5")
    complain("evaluate", path, "--truth", path)
    complain("export", path, "--to", "npz", "-o", "x")
    complain("migrate", path, "-o", "m")
    for command in (("checkpoints", "verify"), ("checkpoints", "show"), ("monitor", "--once")):
        try_out(*command, path)
    try_out("utils", "validate", path)


def test_files_of_gzip_that_are_nearly_right(here: Path) -> None:
    for packed in (gzip.compress(GOOD) + b"garbage", make_bgzip(GOOD)[: -len(BGZIP_END)]):
        (here / "in.fa.gz").write_bytes(packed)
        assert predict_mini("in.fa.gz")[0] == 0


def test_weights_that_need_work(here: Path) -> None:
    adapter = here / "adapter"
    adapter.mkdir()
    save_file({"base.lora_A.weight": torch.ones(1)}, adapter / "adapter_model.safetensors")
    cache = here / "models--owner--name" / "snapshots" / "0"
    cache.mkdir(parents=True)
    wrapped = shutil.copytree(MINI_DIRECTORY / "esm2", here / "wrapped")
    (wrapped / "model.safetensors").unlink()
    torch.save({"module.x": torch.ones(1), 1: 2}, wrapped / "pytorch_model.bin")
    embed = ["embed", "good.fa", "--force-alphabet", "--backend", "esm2", "-d", "cpu", "-o", "e.h5"]
    for path in (adapter, cache.parents[1], wrapped):
        assert str(path) in complain(*embed, "--weights", path)


def test_output_directories_that_cannot_be(here: Path) -> None:
    (here / "dangling").symlink_to(here / "nowhere" / "deeper")
    (here / "linked").symlink_to(here / "real")
    (here / "real").mkdir()
    (here / "file").touch()
    text = complain("predict", "good.fa", "-m", "mini", "-d", "cpu", "-o", "dangling")
    assert "dangling: the output directory cannot be made (it is a link to " in text
    assert try_out("predict", "good.fa", "-m", "mini", "-d", "cpu", "-o", "linked")[0] == 0
    complain("predict", "good.fa", "-m", "mini", "-d", "cpu", "-o", "file/below")
    text = complain("predict", "good.fa", "-m", "mini", "-d", "cpu", "-o", "/proc/nowhere/x")
    assert "choose another, where you may write (-o)" in text


@pytest.mark.parametrize("length", [201, 252])
def test_a_very_long_name(here: Path, length: int) -> None:
    name = "c" * (length - 3) + ".fa"
    shutil.copy("good.fa", name)
    code, text = try_out("predict", name, "-m", "mini", "-d", "cpu")
    assert code == (2 if length == 252 else 0)
    assert length == 201 or "results are named after the input" in text


def test_a_run_that_computed_nothing_is_not_in_the_way(here: Path) -> None:
    Path("late.fa").write_bytes(make_fasta(2) + b">bad\nAC!T\n")
    complain("predict", "late.fa", "-m", "mini", "-d", "cpu", "-o", "out")
    Path("late.fa").write_bytes(make_fasta(2))
    assert try_out("predict", "late.fa", "-m", "mini", "-d", "cpu", "-o", "out")[0] == 0
    first = Path("out/run.log").read_text().splitlines()[0]
    assert "virnucpro 0." in first


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cuda:3"},
        {"ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_DYNAMO_BACKEND": "x"},
        {"HOME": "/nowhere", "XDG_CACHE_HOME": "/proc/none", "VIRNUCPRO_BUDGETS": "/proc/none/x"},
        {"HOME": "", "VIRNUCPRO_BUDGETS": ""},
        {"CUDA_VISIBLE_DEVICES": "nonsense"},
        {"COLUMNS": "x", "TERM": "none", "LANG": "xx"},
    ],
)
def test_any_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert predict_mini("good.fa")[0] == 0
    assert os.environ | variables == os.environ

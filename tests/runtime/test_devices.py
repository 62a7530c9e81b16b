"""What a device is told before anything computes on it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.runs import VIRNUCPRO, run, write_reads
from virnucpro.config import ComputeConfig
from virnucpro.runtime import environment
from virnucpro.runtime.devices import few_threads, make_accelerator

# In a process of its own: what a heap that others have used looks like is chance.
PROGRAM = """
import resource
import torch
from virnucpro.runtime.devices import keep_freed_memory

def count_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for num_mib in range(5, 25):  # each larger than what malloc has learned to keep
        torch.ones(num_mib << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

untold = count_page_faults()
keep_freed_memory()
print(untold * resource.getpagesize() >> 20, count_page_faults() * resource.getpagesize() >> 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is for glibc's malloc")
def test_freed_memory_is_used_again() -> None:
    done = run(sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    untold, told = map(int, done.stdout.split())
    assert untold > 250  # MiB: all of 5 to 24 are mapped anew
    assert told < 60


@pytest.mark.slow
def test_variables_of_training_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = write_reads(tmp_path / "in.fa", 2)
    for name in ("USE_DEEPSPEED", "USE_FSDP", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG"):
        monkeypatch.setenv(f"ACCELERATE_{name}", "true")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:7")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "nonsense")
    # A launcher's process: DeepSpeed is started in another place then.
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    done = run(*VIRNUCPRO, "predict", reads, "-m", "mini", "-d", "cpu", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_settings_of_nccl_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    monkeypatch.delenv("NCCL_IB_DISABLE", raising=False)
    make_accelerator(ComputeConfig(device="cpu"))
    assert os.environ["NCCL_P2P_DISABLE"] == "0"
    assert "NCCL_IB_DISABLE" not in os.environ


@pytest.mark.slow
def test_a_variable_that_accelerate_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = write_reads(tmp_path / "in.fa", 2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "perhaps")
    done = run(*VIRNUCPRO, "predict", reads, "-m", "mini", "-d", "cpu", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "invalid truth value perhaps" in done.stderr
    assert "ACCELERATE_USE_CPU; unset what you do not need" in done.stderr


def test_few_threads_compute_small_products() -> None:
    before = torch.get_num_threads()
    try:
        for num_threads, num_inside in ((64, 8), (2, 2)):
            torch.set_num_threads(num_threads)
            with suppress(KeyError), few_threads():
                assert torch.get_num_threads() == num_inside
                raise KeyError
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("by_user", "num_cores", "num_threads"), [(None, 2, 2), (None, 64, 6), ("6", 2, 6)]
)
def test_torch_has_no_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, by_user: str | None, num_cores: int, num_threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", by_user)
    monkeypatch.setattr(environment, "_num_allowed_cores", num_cores)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        make_accelerator(ComputeConfig(device="cpu"))
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


HOMELESS = """
import os
from pathlib import Path
def home(): raise RuntimeError
Path.home = home
from virnucpro.runtime.devices import keep_compiled
keep_compiled()
place = Path(os.environ["TRITON_CACHE_DIR"])
print(place, oct(place.stat().st_mode & 0o777) if place.exists() else None)
"""


@pytest.mark.slow
def test_triton_has_a_place_without_a_home_for_as_long_as_the_process(tmp_path: Path) -> None:
    names = ("TRITON_CACHE_DIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["TMPDIR"] = str(tmp_path)

    def start(**variables: str) -> list[str]:
        command = [sys.executable, "-c", HOMELESS]
        return subprocess.check_output(command, env=environment | variables, text=True).split()

    place, mode = start()
    assert Path(place).parent == tmp_path
    assert mode == "0o700"
    assert start(TRITON_CACHE_DIR="/mine") == ["/mine", "None"]
    assert list(tmp_path.iterdir()) == []

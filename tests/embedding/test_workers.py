"""How many workers tokenize, and what they need; test_loop.py has what the loader delivers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from virnucpro.backend.interface import TokenBatch
from virnucpro.config import ComputeConfig
from virnucpro.embedding.workers import Parcel, count_workers
from virnucpro.runtime import environment

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_cores", "num_local_processes", "num_workers"),
    [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 8), (64, 2, 4), (16, 4, 3), (8, 8, 1)],
)
def test_processes_on_gpus_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_local_processes: int, num_workers: int
) -> None:
    monkeypatch.setattr(environment, "_num_allowed_cores", num_cores)
    monkeypatch.setenv("WORLD_SIZE", str(num_local_processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local_processes))
    assert count_workers(ComputeConfig(), GPU) == num_workers


COUNT_CORES = """
import os, sys
allowed = sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]
os.sched_setaffinity(0, allowed)
from virnucpro.runtime.environment import num_cores
# As `accelerate launch --enable_cpu_affinity` does.
os.sched_setaffinity(0, allowed[:1])
print(num_cores())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system ties no process")
@pytest.mark.parametrize("num_cores", [1, 2])
def test_the_cores_of_the_job_count_also_if_a_process_is_tied_to_some(num_cores: int) -> None:
    command = [sys.executable, "-c", COUNT_CORES, str(num_cores)]
    environ = os.environ | {"ACCELERATE_CPU_AFFINITY": "1"}
    found = int(subprocess.check_output(command, env=environ))
    assert found == min(num_cores, len(os.sched_getaffinity(0)))


def test_on_a_cpu_the_process_tokenizes_itself() -> None:
    assert count_workers(ComputeConfig(), CPU) == 0


@pytest.mark.slow
@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_user_decides(device: torch.device) -> None:
    assert count_workers(ComputeConfig(dataloader_workers=0), device) == 0
    assert count_workers(ComputeConfig(dataloader_workers=7), device) == 7


def test_a_batch_travels_without_shared_memory() -> None:
    lengths = torch.tensor([3, 2])
    batch = TokenBatch(torch.arange(5), lengths, max_length=3, rows=np.array([7, 9]))
    pickled = bytes(ForkingPickler.dumps(Parcel(batch)))
    # Nothing but data: a tensor would be the name of a file that another process has open.
    assert b"torch.multiprocessing" not in pickled
    found = pickle.loads(pickled)
    assert isinstance(found, TokenBatch)
    for tensor, wanted in zip(found, batch, strict=True):
        np.testing.assert_array_equal(np.asarray(tensor), np.asarray(wanted))


COUNT = """
import torch
from virnucpro.config import ComputeConfig
from virnucpro.embedding.workers import count_workers
print(count_workers(ComputeConfig(dataloader_workers=2), torch.device("cpu")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "num_workers"), [("16k", "0"), ("1m", "2")])
def test_without_shared_memory_there_are_no_workers(size: str, num_workers: str) -> None:
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} x /dev/shm && "$@"']
    if subprocess.run([*mount, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small /dev/shm")
    done = subprocess.run(
        [*mount, "sh", sys.executable, "-c", COUNT], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == num_workers, done.stderr
    assert ("shared memory (/dev/shm) is full or missing" in done.stderr) == (num_workers == "0")

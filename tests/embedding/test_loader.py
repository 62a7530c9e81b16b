"""How many workers tokenize; test_loop.py has what the loader delivers."""

from __future__ import annotations

import os

import pytest
import torch

from virnucpro.config import ComputeConfig
from virnucpro.embedding.loader import count_workers

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("num_cores", "num_local_processes", "num_workers"),
    [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 4), (16, 4, 3), (8, 8, 1)],
)
def test_processes_on_gpus_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_local_processes: int, num_workers: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: num_cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local_processes))
    assert count_workers(ComputeConfig(), GPU) == num_workers


def test_on_a_cpu_the_process_tokenizes_itself() -> None:
    assert count_workers(ComputeConfig(), CPU) == 0


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_user_decides(device: torch.device) -> None:
    assert count_workers(ComputeConfig(dataloader_workers=0), device) == 0
    assert count_workers(ComputeConfig(dataloader_workers=7), device) == 7

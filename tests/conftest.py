"""Settings and helpers that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports torch: results must not depend on how many cores a machine has, and
# several test processes share them. A hub must never be asked.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor may it depend on what `virnucpro profile` has found on this machine.
os.environ["VIRNUCPRO_BUDGETS"] = "/nonexistent/budgets.json"

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material for tests that lies beside some checkouts and is not part of the project."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("no shared test material beside this checkout")
    return path


@pytest.fixture(scope="session")
def demo_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of `PredictConfig` for small seeded models, which the golden tables come from."""
    from tools.make_demo_weights import make_demo_weights

    return make_demo_weights(tmp_path_factory.mktemp("weights"))

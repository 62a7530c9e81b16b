"""Which numbers of tokens `profile` measures; tests/cli/test_benchmark.py runs the command."""

from __future__ import annotations

import pytest

from virnucpro.config import ProfileConfig
from virnucpro.errors import UsageError
from virnucpro.workflows.profile import list_budgets


def test_budgets_double_and_stop_where_they_should() -> None:
    assert list_budgets("cpu", 512) == [512, 1024, 2048, 4096, 8192]
    assert list_budgets("cuda", 512)[-1] == 131_072
    assert list_budgets("cuda", 512, 2048, 512) == [512, 1024, 1536, 2048]
    assert list_budgets("cpu", 20_000) == [20_000]
    with pytest.raises(UsageError, match="at least the smallest"):
        ProfileConfig(backend="esm2", min_batch_tokens=512, max_batch_tokens=100)

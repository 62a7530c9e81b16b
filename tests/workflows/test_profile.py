"""Which numbers of tokens `profile` measures; tests/cli/test_benchmark.py runs the command."""

from __future__ import annotations

import pytest

from virnucpro.errors import UsageError
from virnucpro.workflows.profile import BudgetRange


def test_budgets_double_and_stop_where_they_should() -> None:
    assert BudgetRange(512).list_for("cpu") == [512, 1024, 2048, 4096, 8192]
    assert BudgetRange(512).list_for("cuda")[-1] == 131_072
    assert BudgetRange(512, 2048, 512).list_for("cuda") == [512, 1024, 1536, 2048]
    assert BudgetRange(20_000).list_for("cpu") == [20_000]
    with pytest.raises(UsageError, match="at least the smallest"):
        BudgetRange(512, 100)

"""Where the budgets of `virnucpro profile` lie, and what a file of another kind does."""

from __future__ import annotations

import dataclasses
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from virnucpro.embedding.budgets import (
    BudgetKey,
    budgets_path,
    read_budget,
    read_speed,
    store_budget,
)
from virnucpro.errors import OutputError

KEY = BudgetKey("NVIDIA H200", "esm2", 2560, "bf16", "auto")
HEADER = b'{"format": "virnucpro-budgets", "format_version": 1, '
OTHERS = [
    dataclasses.replace(KEY, device="cpu"),
    dataclasses.replace(KEY, backend="dnabert-s"),
    dataclasses.replace(KEY, embedding_dim=1280),
    dataclasses.replace(KEY, precision="fp8"),
    dataclasses.replace(KEY, attention="sdpa"),
]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "budgets.json"
    monkeypatch.setenv("VIRNUCPRO_BUDGETS", str(path))
    return path


def test_each_key_has_its_own_budget_and_the_last_one_counts(path: Path) -> None:
    assert read_budget(KEY) is None
    for budget, key in enumerate([*OTHERS, KEY], 1):
        assert store_budget(key, 100 * budget) == path
    store_budget(KEY, 16_384)
    assert read_budget(KEY) == 16_384
    assert [read_budget(key) for key in OTHERS] == [100, 200, 300, 400, 500]
    assert len(json.loads(path.read_text())["budgets"]) == 6
    assert sorted(path.parent.iterdir()) == [path.with_name(".budgets.json.lock"), path]


def test_a_speed_is_kept_beside_the_budget(path: Path) -> None:
    assert read_speed(KEY) is None
    store_budget(KEY, 512, 1_234.5)
    assert read_speed(KEY) == 1_234.5
    assert read_speed(OTHERS[0]) is None
    # Nobody measured it, an earlier version wrote the file, or something else did.
    for speed in (None, 0, -1.0, "fast"):
        document = json.loads(path.read_text())
        document["budgets"][0]["tokens_per_s"] = speed
        path.write_text(json.dumps(document))
        assert read_speed(KEY) is None
    del document["budgets"][0]["tokens_per_s"]
    path.write_text(json.dumps(document))
    assert read_speed(KEY) is None
    assert read_budget(KEY) == 512


def test_models_may_be_measured_at_the_same_time(path: Path) -> None:
    keys = [dataclasses.replace(KEY, embedding_dim=dim) for dim in range(1, 33)]
    with ThreadPoolExecutor(len(keys)) as pool:
        # A list, because `map` raises an error only when its results are read.
        list(pool.map(store_budget, keys, range(1, 33)))
    assert [read_budget(key) for key in keys] == list(range(1, 33))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'"budgets"',
        b'{"budgets": []}',
        b'{"format": "virnucpro-budgets", "format_version": 2, "budgets": []}',
        HEADER + b'"budgets": {}}',
        HEADER + b'"budgets": [512]}',
        HEADER + b'"budgets": [{"batch_tokens": 0}]}',
        HEADER + b'"budgets": [{"batch_tokens": true}]}',
    ],
)
def test_what_is_no_file_of_budgets_is_passed_over_and_replaced(
    content: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read_budget(KEY) is None
    assert str(path) in caplog.text
    assert "ignored (" in caplog.text
    store_budget(KEY, 512)
    assert read_budget(KEY) == 512


def test_budgets_lie_in_the_users_cache_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIRNUCPRO_BUDGETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert budgets_path() == tmp_path / "virnucpro" / "budgets.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert budgets_path() == Path("/home/someone/.cache/virnucpro/budgets.json")


def test_a_user_without_a_home_directory_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRNUCPRO_BUDGETS", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    # As in a container that is started with a number that /etc/passwd does not have.
    monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)
    assert read_budget(KEY) is None
    with pytest.raises(OutputError, match="no home directory; name a file in VIRNUCPRO_BUDGETS"):
        store_budget(KEY, 512)


def test_a_cache_that_cannot_be_made_is_named(path: Path) -> None:
    path.parent.write_text("a file, where the directory should be")
    with pytest.raises(OutputError, match=r"cache/budgets\.json: cannot be written"):
        store_budget(KEY, 512)
    assert read_budget(KEY) is None

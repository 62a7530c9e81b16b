from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.backend import places


def test_the_cache_follows_xdg_and_else_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places.user_cache_dir() == tmp_path / "cache/virnucpro"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the standard: empty means unset
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.user_cache_dir() == tmp_path / ".cache/virnucpro"


def test_a_model_of_the_hub_counts_once_its_checksums_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIRNUCPRO_MODELS", str(tmp_path))
    (tmp_path / "owner/name@v1").mkdir(parents=True)
    assert places.find_model("owner/name@v1") is None
    (tmp_path / "owner/name@v1/SHA256SUMS").touch()
    assert places.find_model("owner/name@v1") == tmp_path / "owner/name@v1"
    assert places.find_model("500_model.pth") is None
    (tmp_path / "500_model.pth").touch()
    assert places.find_model("500_model.pth") == tmp_path / "500_model.pth"

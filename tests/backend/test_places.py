from __future__ import annotations

import os
import subprocess
import sys
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


DENIED = """
import os
from virnucpro.backend.places import find_model
if os.getuid() == 0:
    os.setuid(65534)
print(find_model("500_model.pth"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["VIRNUCPRO_MODELS", "XDG_CACHE_HOME"])
def test_a_directory_that_may_not_be_read(variable: str, tmp_path: Path) -> None:
    """The cache of somebody else holds nothing for us, but a directory that we name is meant."""
    (tmp_path / "closed").mkdir(mode=0)
    names = ("VIRNUCPRO_MODELS", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    child = subprocess.run(
        [sys.executable, "-c", DENIED],
        env=environment | {variable: str(tmp_path / "closed")},
        capture_output=True,
        text=True,
        check=False,
    )
    if variable == "XDG_CACHE_HOME":
        assert child.stdout == "None\n", child.stderr
    else:
        assert f"{tmp_path}/closed/500_model.pth: you have no permission to read" in child.stderr
        assert f"let its owner run chmod -R a+rX {tmp_path}/closed" in child.stderr

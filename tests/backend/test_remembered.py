"""Remembered digests: they save reading a file, and never stand for another content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from virnucpro.backend import remembered
from virnucpro.backend.digests import digest_files

FALSE = "f" * 64


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the digests; small and young files are remembered, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "MIN_BYTES", 0)
    monkeypatch.setattr(remembered, "_MIN_AGE_NS", -1)
    return tmp_path / "cache/virnucpro/digests.json"


@pytest.fixture
def weights(tmp_path: Path, kept: Path) -> Path:
    """A file with a false digest in memory, which shows whether the file was read."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"one")
    assert digest_files([path]) == sha256(b"one")
    kept.write_text(kept.read_text().replace(sha256(b"one").removeprefix("sha256:"), FALSE))
    return path


def test_an_unchanged_file_is_not_read_again_unless_wanted(weights: Path, tmp_path: Path) -> None:
    assert digest_files([weights]) == f"sha256:{FALSE}"
    link = tmp_path / "link.bin"
    link.symlink_to(weights)
    assert digest_files([link]) == f"sha256:{FALSE}"
    assert digest_files([weights], anew=True) == sha256(b"one")


def test_a_file_that_was_written_to_is_read_again(weights: Path) -> None:
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"two")
    # As rsync and tar do it: size, inode and time of writing are as they were.
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert digest_files([weights]) == sha256(b"two")


def test_a_file_that_was_replaced_is_read_again(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"two")
    shutil.copystat(weights, other)
    other.replace(weights)
    assert digest_files([weights]) == sha256(b"two")


def test_a_young_file_and_a_small_one_are_not_remembered(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"one")
    monkeypatch.setattr(remembered, "_MIN_AGE_NS", 10**10)
    digest_files([path])
    monkeypatch.setattr(remembered, "_MIN_AGE_NS", -1)
    monkeypatch.setattr(remembered, "MIN_BYTES", 4)
    digest_files([path])
    assert not kept.exists()


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path, kept: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"one")
    state = remembered.get_state(path)
    path.write_bytes(b"two")
    remembered.remember(path, state, FALSE)
    assert not kept.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 10_000, '{"a": 1}', '{"a": {"state": []}}', "\ud800", "null"]
)
def test_a_damaged_memory_is_written_anew(weights: Path, kept: Path, content: str) -> None:
    kept.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert digest_files([weights]) == sha256(b"one")
    assert list(json.loads(kept.read_text())) == [str(weights)]


def test_without_a_place_nothing_is_remembered(weights: Path, kept: Path) -> None:
    shutil.rmtree(kept.parent)
    kept.parent.write_text("no directory")
    assert digest_files([weights]) == sha256(b"one")

"""Digests of weights, and the damage that they show: the archive's checksums, the hub's digests."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoints.fuzzing import damage
from virnucpro.backend.digests import digest_files
from virnucpro.backend.weights import read_tensors
from virnucpro.errors import WeightsError

TENSORS = {"weight": torch.arange(4096.0), "bias": torch.ones(2)}


def test_a_digest_belongs_to_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one, two = tmp_path / "one" / "a.bin", tmp_path / "one" / "b.bin"
    one.write_bytes(b"first")
    two.write_bytes(b"second")
    copy = shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert digest_files([one]) == f"sha256:{hashlib.sha256(b'first').hexdigest()}"
    assert digest_files([one, two]) == digest_files([copy / "b.bin", copy / "a.bin"])
    before = digest_files([one, two])
    two.rename(two.with_name("c.bin"))
    assert digest_files([one, two.with_name("c.bin")]) != before
    two.write_bytes(b"Second")
    assert digest_files([one, two]) != before


def test_a_file_that_cannot_be_digested_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.bin"):
        digest_files([tmp_path / "missing.bin"])


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_a_file_of_torch_has_the_digest_of_its_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    torch.save(TENSORS, path)
    assert digest_files([path]) == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_no_damage_of_a_file_of_torch_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(TENSORS, path)
    content = path.read_bytes()
    num_refused = 0
    for seed in range(500):
        path.write_bytes(damage(content, seed))
        try:
            digest_files([path])
            found = read_tensors(path)
        except WeightsError:
            num_refused += 1
            continue
        # What is accepted differs in nothing that torch reads.
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert num_refused > 350


def test_a_file_without_checksums_is_digested(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert digest_files([path]) == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_directory_that_names_another_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(TENSORS, path)
    content = path.read_bytes()
    place = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", place + 4)
    # The second member's place becomes that of the first.
    moved = bytearray(content)
    moved[second + 42 : second + 46] = content[place + 42 : place + 46]
    path.write_bytes(moved)
    with pytest.raises(WeightsError, match="contradicts the directory"):
        digest_files([path])


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.parametrize(
    "digest", [git_digest, lambda content: hashlib.sha256(content).hexdigest()]
)
def test_a_file_of_the_cache_is_compared_with_the_digest_of_the_hub(tmp_path: Path, digest) -> None:
    content = b'{"hidden_size": 8}'
    blob = tmp_path / "blobs" / digest(content)
    path = tmp_path / "snapshots" / "abc" / "config.json"
    blob.parent.mkdir()
    path.parent.mkdir(parents=True)
    path.symlink_to(blob)
    blob.write_bytes(content)
    assert digest_files([path]) == f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob.write_bytes(content.replace(b"8", b"9"))
    with pytest.raises(WeightsError, match=f"config.json: is damaged, .*digest is {blob.name}"):
        digest_files([path])


def test_a_downloaded_file_is_compared_unless_it_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    metadata = tmp_path / ".cache/huggingface/download/config.json.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"{'a' * 40}\n{git_digest(b'{}')}\n{path.stat().st_mtime}\n")
    written = path.stat().st_mtime
    digest_files([path])
    path.write_bytes(b"{ }")
    os.utime(path, (written, written))
    with pytest.raises(WeightsError, match="is damaged"):
        digest_files([path])
    os.utime(path, (written + 60, written + 60))
    digest_files([path])

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from tests.loopback import Server, git_blob, running_server
from tests.runs import REPOSITORY, read_table
from virnucpro.backend import remembered
from virnucpro.backend.digests import digest_files
from virnucpro.cli.main import main
from virnucpro.config import MINI_DIRECTORY, PUBLISHED
from virnucpro.config.published import DNABERT_S, ESM2_3B
from virnucpro.workflows.models import download_model

# The small model stands for the published models, which are too large for a test.
CLASSIFIER = (MINI_DIRECTORY / "500_model.safetensors").read_bytes()
SERVED = {"dnabert-s": MINI_DIRECTORY / "dnabert_s", "esm2-3b": MINI_DIRECTORY / "esm2"}
NAMES = ("500", DNABERT_S.name, ESM2_3B.name)


pytestmark = pytest.mark.slow


def read_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DIGESTS = {
    "500": {"500_model.pth": f"git:{git_blob(CLASSIFIER)}"},
    DNABERT_S.name: {
        name: f"sha256:{sha256(data)}" for name, data in read_files(SERVED[DNABERT_S.name]).items()
    },
    ESM2_3B.name: {},
}
"""As in the real list: the digests of some models are known beforehand."""


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        server.files["500_model.pth"] = CLASSIFIER
        for model in (DNABERT_S, ESM2_3B):
            files = read_files(SERVED[model.name])
            server.models[model.location] = files | {"README.md": b"hello"}
        yield server


@pytest.fixture
def models(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run `virnucpro models` where the published models are those of the server."""
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    pattern = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")[2]
    template = f"{server.address}/{{repo_id}}{pattern}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # By default what arrives is written in blocks of 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 10)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VIRNUCPRO_MODELS", raising=False)
    for name, digests in DIGESTS.items():
        model = PUBLISHED[name]
        url = model.url and f"{server.address}/{model.location}"
        monkeypatch.setitem(
            PUBLISHED, name, dataclasses.replace(model, url=url, digests=dict(digests))
        )
    return lambda *words: CliRunner().invoke(main, ["models", *map(str, words)])


def test_models_are_downloaded_found_checked_and_removed(models, server, tmp_path):
    assert models("download", *NAMES).exit_code == 0
    assert models("path", "500").output == f"{tmp_path}/cache/virnucpro/models/500_model.pth\n"
    assert Path(models("path", "500").output.strip()).read_bytes() == CLASSIFIER
    listed = {one["name"]: one["path"] for one in json.loads(models("list", "--json").output)}
    assert {name for name, path in listed.items() if path} == {"mini", *NAMES}
    assert listed[ESM2_3B.name].startswith(f"{tmp_path}/hub/")
    assert not server.ranges_of("README.md")
    before = len(server.requests)
    checked = models("verify")
    assert checked.exit_code == 0
    assert checked.output.count(": ok\n") == 1 + 3 + 2
    assert "mini: ships with this package" in checked.output
    for name in NAMES:
        assert "Removed: " in models("remove", name).output
        assert models("path", name).exit_code == 1
    assert len(server.requests) == before
    assert models("verify", "500").exit_code == 1
    assert models("remove", "500").output == "500: is not on this machine\n"
    assert models("remove", "mini").exit_code == 2


def test_a_shared_directory_that_has_all_is_not_touched(models, server, tmp_path, monkeypatch):
    """It may be read-only, and its machine may have no network."""
    shared = tmp_path / "shared"
    assert models("download", *NAMES, "--to", shared).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in [shared, *shared.rglob("*")]}
    num_requests = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("VIRNUCPRO_MODELS", str(shared))
    for result in (models("download", *NAMES), models("download", *NAMES, "--to", shared)):
        assert result.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in [shared, *shared.rglob("*")]} == before
    assert len(server.requests) == num_requests
    # A file that is gone, or a list of none, is no whole model.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    directory = shared / ESM2_3B.location
    content = (directory / "config.json").read_bytes()
    for broken in ("config.json", "SHA256SUMS"):
        (directory / broken).write_bytes(b"")
        (directory / "config.json").unlink()
        assert models("download", ESM2_3B.name).exit_code == 0
        assert (directory / "config.json").read_bytes() == content
    # Nor is one with a damaged file.
    (directory / "config.json").write_bytes(content[::-1])
    assert models("download", ESM2_3B.name).exit_code == 0
    assert (directory / "config.json").read_bytes() == content


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("is_mirror", [False, True])
def test_jobs_that_start_together_download_once(is_mirror, server, tmp_path):
    mirror = str(tmp_path / "mirror") if is_mirror else None
    if is_mirror:
        download_model(DNABERT_S.name, tmp_path / "mirror")
    to = tmp_path / "shared"
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(download_model, DNABERT_S.name, to, mirror) for _ in range(8)]
        (path,) = {job.result() for job in jobs}
    assert (path / "SHA256SUMS").is_file()
    assert sum("model.safetensors" in one for one in map(str, server.requests)) <= 2


@pytest.mark.parametrize("name", ["500", DNABERT_S.name])
def test_where_nothing_may_be_written_nothing_is_downloaded(models, name):
    # Not even root may make a directory there.
    result = models("download", name, "--to", "/sys/virnucpro")
    assert result.exit_code == 1
    assert "there is no permission" in result.stderr
    assert "--to" in result.stderr


def test_verify_finds_what_a_disk_has_damaged_without_a_new_time(models, tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "MIN_BYTES", 0)
    monkeypatch.setattr(remembered, "_MIN_AGE_NS", -1)
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    digest_files([weights])
    assert f"used before: {weights}: ok" in models("verify").output
    # No program can write to a file and keep its ctime, so the kept digest is changed instead.
    kept = tmp_path / "cache/virnucpro/digests.json"
    kept.write_text(kept.read_text().replace(sha256(b"weights"), sha256(b"Weights")))
    assert f"used before: {weights}" not in models("verify", "mini").output
    result = models("verify")
    assert result.exit_code == 1
    assert f"{weights}: has the digest sha256:{sha256(b'weights')}" in result.stderr
    assert models("verify").exit_code == 0
    assert digest_files([weights]) == f"sha256:{sha256(b'weights')}"


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["moved"], None),
        (["cut"], None),
        (["cut", "down"], "bytes are kept, and the next attempt continues there"),
        (["long"], "Consistency check failed"),
        (["short"], f"wanted {DIGESTS['500']['500_model.pth']}"),
        (["flip"], f"wanted {DIGESTS['500']['500_model.pth']}"),
        (["page"], "it is a web page (HTML), as a failed download leaves"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_file_server_on_a_bad_day(models, server, faults, message):
    server.faults["500_model.pth"] = list(faults)
    result = models("download", "500")
    if message is None:
        assert result.exit_code == 0
    else:
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert models("path", "500").exit_code == 1
        assert models("download", "500").exit_code == 0
    assert models("verify", "500").exit_code == 0
    if "cut" in faults:
        start = int(server.ranges_of("500_model.pth")[-1].removeprefix("bytes=").rstrip("-"))
        assert 0 < start <= len(CLASSIFIER) // 3
        # Its own handler would say again what ours has said.
        assert "Trying to resume" in result.stderr
        assert not logging.getLogger("huggingface_hub").handlers


@pytest.mark.parametrize(
    ("faults", "message", "to"),
    [
        (["moved"], None, False),
        (["cut"], None, False),
        (["cut", "down"], "the Hugging Face hub did not give it", True),
        (["short"], "the Hugging Face hub did not give it", False),
        (["page"], "the Hugging Face hub did not give it", False),
        (["flip"], None, True),  # noticed, and downloaded again
        (["flip", "flip"], "the file is damaged", False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_hub_on_a_bad_day(models, server, tmp_path, faults, message, to):
    server.faults["model.safetensors"] = list(faults)
    options = ["--to", tmp_path / "models"] if to else []
    result = models("download", ESM2_3B.name, *options)
    assert result.exit_code == (0 if message is None else 1), result.stderr
    assert "Traceback" not in result.stderr
    digest = sha256(server.models[ESM2_3B.location]["model.safetensors"])
    if "flip" in faults:
        assert f"wanted sha256:{digest}" in result.stderr
    if message is not None:
        assert message in result.stderr
        assert models("download", ESM2_3B.name, *options).exit_code == 0
    root = tmp_path / ("models" if to else "hub")
    (found,) = {path.resolve() for path in root.glob("**/model.safetensors")}
    assert sha256(found.read_bytes()) == digest


def test_what_to_has_filled_is_a_mirror_and_needs_no_network(models, server, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    assert models("download", *NAMES, "--to", shared).exit_code == 0
    assert not (tmp_path / "hub").exists()
    for path in shared.rglob("*"):
        if path.is_file() and ".cache" not in path.parts:
            server.files[str(path.relative_to(shared))] = path.read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("VIRNUCPRO_MODELS", str(shared))
    assert models("verify", *NAMES).output.count(": ok\n") == 1 + 3 + 2
    before = len(server.requests)
    for number, mirror in enumerate((str(shared), server.address)):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", mirror == str(shared))
        monkeypatch.setenv("VIRNUCPRO_MODELS", str(tmp_path / f"other{number}"))
        result = models("download", *NAMES, "--mirror", mirror)
        assert result.exit_code == 0, result.stderr
        assert models("verify", *NAMES).output.count(": ok\n") == 1 + 3 + 2
    assert not any(path.startswith("/api") for _, path, _ in server.requests[before:])


@pytest.mark.parametrize("name", [DNABERT_S.name, ESM2_3B.name])
def test_a_mirror_with_another_byte_is_refused_with_both_digests(models, tmp_path, name):
    shared = tmp_path / "shared"
    models("download", name, "--to", shared)
    (damaged,) = shared.glob("*/*/model.safetensors")
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    result = models("download", name, "--mirror", shared)
    assert result.exit_code == 1
    assert f"wanted sha256:{sha256(good)}" in result.stderr
    assert f"digest sha256:{sha256(damaged.read_bytes())}" in result.stderr
    assert models("path", name).exit_code == 1


def test_a_mirror_that_is_none_is_refused(models, server, tmp_path):
    server.files[f"{ESM2_3B.location}/SHA256SUMS"] = b"<!DOCTYPE html>\n"
    result = models("download", ESM2_3B.name, "--mirror", server.address)
    assert result.exit_code == 1
    assert "SHA256SUMS, line 1: wanted a SHA-256" in result.stderr
    server.files[f"{ESM2_3B.location}/SHA256SUMS"] = f"{'0' * 64}  ../../evil\n".encode()
    assert models("download", ESM2_3B.name, "--mirror", server.address).exit_code == 1
    result = models("download", "500", "--mirror", f"{server.address}/nothing")
    assert result.exit_code == 1
    assert "404" in result.stderr
    assert models("download", "500", "--mirror", tmp_path / "nowhere").exit_code == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_found_offline(models, name, monkeypatch):
    models("download", name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = Path(models("path", name).output.strip())
    path = (place / "model.safetensors" if place.is_dir() else place).resolve()
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    result = models("verify", name)
    assert result.exit_code == 1
    git = name == "500"
    digest = git_blob if git else sha256
    for data in (good, path.read_bytes()):
        assert f"{'git' if git else 'sha256'}:{digest(data)}" in result.stderr
    assert f"virnucpro models download {name}" in result.stderr


def test_no_network_is_explained(models, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("500", ESM2_3B.name):
        result = models("download", name)
        assert result.exit_code == 1
        assert "offline" in result.stderr.lower()
        assert "Traceback" not in result.stderr
    assert not server.requests


def test_a_model_that_is_not_published_is_refused(models):
    result = models("download", "esm3")
    assert result.exit_code == 2
    assert "'esm3'" in result.stderr


@pytest.mark.slow
def test_predict_needs_no_classifier_once_one_is_downloaded(server, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    shutil.copy(REPOSITORY / "examples/example.fasta", tmp_path / "x.fasta")
    predict = ("-m", "virnucpro", "predict", "x.fasta", "-m", "500", "--device=cpu")
    missing = start(*predict)
    assert missing.returncode == 2
    assert "virnucpro models download 500 dnabert-s esm2-3b" in missing.stderr
    program = str(REPOSITORY / "tests/published_here.py")
    done = start(program, server.address, json.dumps(DIGESTS), "models", "download", *NAMES)
    assert done.returncode == 0, done.stderr
    environment["HF_HUB_OFFLINE"] = "1"
    done = start(*predict)
    assert done.returncode == 0, done.stderr
    assert read_table(tmp_path / "x_predictions/records.tsv")
    said = json.loads((tmp_path / "x_predictions/run.json").read_text())["settings"]
    assert said["model_path"] == f"{tmp_path}/cache/virnucpro/models/500_model.pth"

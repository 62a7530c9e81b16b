from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from virnucpro.backend.weights import (
    find_download,
    find_weight_files,
    locate_weights,
    read_json,
    read_pickle,
    read_tensors,
)
from virnucpro.errors import WeightsError

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

TENSORS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
COMMITS = {"main": "a" * 40, "v2": "b" * 40}
FILES = {
    "a" * 40: {"config.json": b'{"v": 1}', "toy.safetensors": b"one", "README.md": b"hello"},
    "b" * 40: {"config.json": b'{"v": 2}', "toy.safetensors": b"two", "README.md": b"hello"},
}
"""The files of `owner/toy` on our hub at each commit."""


class Hub(BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as `snapshot_download` needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path.split("?")[0].strip("/").split("/"):
            case ["api", "models", "owner", "toy", "revision", revision]:
                self._send_info(COMMITS.get(revision))
            case ["api", "models", "owner", "toy", "tree", commit] if commit in FILES:
                self._send_json(
                    [
                        {"type": "file", "path": path, "size": len(data), "oid": etag(data)}
                        for path, data in FILES[commit].items()
                    ]
                )
            case ["api", "models", "owner", "cut", *_]:
                self.close_connection = True
            case ["owner", "toy", "resolve", commit, path] if path in FILES.get(commit, {}):
                data = FILES[commit][path]
                self._send(200, data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit})
            case _:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send_info(self, commit: str | None) -> None:
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in FILES[commit]]
        return self._send_json({"id": "owner/toy", "sha": commit, "siblings": siblings})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Stay silent."""


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    """Give the address of a running hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


LOCATE = """
import sys
from virnucpro.errors import WeightsError
from virnucpro.backend.weights import locate_weights
try:
    path = locate_weights(sys.argv[1], ["*.json", "*.safetensors"])
    print(sorted(file.name for file in path.iterdir()), (path / "toy.safetensors").read_text())
except WeightsError as error:
    print("refused:", error)
"""


def locate_elsewhere(location: str, endpoint: str, cache: Path, **environment: str) -> str:
    """Locate in a process of its own: huggingface_hub reads its settings when imported."""
    child = subprocess.run(
        [sys.executable, "-c", LOCATE, location],
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        cwd=cache,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Retrying" not in child.stderr
    return child.stdout.strip()


def test_a_local_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "owner" / "toy"
    file.parent.mkdir()
    file.touch()
    monkeypatch.chdir(tmp_path)
    assert locate_weights(str(file), []) == file
    # What looks like a hub id but lies here is not asked of the hub.
    assert locate_weights("owner/toy", []) == Path("owner/toy")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_weights("~/owner/toy", []) == file


@pytest.mark.parametrize("location", ["nothing-here", "/no/such/file", "a/b/c", "~nobody-/x"])
def test_a_missing_path_is_refused(location: str) -> None:
    with pytest.raises(WeightsError, match="no such file or directory, and not a hub id"):
        locate_weights(location, [])


@pytest.mark.parametrize("location", ["a..b/c", "a--b/c", "a/b.git", "-a/b"])
def test_an_impossible_hub_id_is_refused(location: str) -> None:
    with pytest.raises(WeightsError, match="the Hugging Face hub did not give it"):
        locate_weights(location, [])


@pytest.mark.slow
def test_hub_files_are_fetched_at_the_pinned_revision(hub: str, tmp_path: Path) -> None:
    wanted = "['config.json', 'toy.safetensors']"
    assert locate_elsewhere("owner/toy", hub, tmp_path) == f"{wanted} one"
    assert locate_elsewhere("owner/toy@v2", hub, tmp_path) == f"{wanted} two"
    assert locate_elsewhere(f"owner/toy@{'a' * 40}", hub, tmp_path) == f"{wanted} one"
    assert locate_elsewhere("owner/toy@v2", hub, tmp_path, HF_HUB_OFFLINE="1") == f"{wanted} two"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("owner/toy@v3", "Revision Not Found"),
        (f"owner/toy@{'c' * 40}", "404"),
        ("owner/other", "Repository Not Found"),
        ("owner/cut", "disconnected"),
    ],
)
def test_what_the_hub_lacks_is_refused(
    hub: str, tmp_path: Path, location: str, reason: str
) -> None:
    message = locate_elsewhere(location, hub, tmp_path)
    assert message.startswith(f"refused: {location}: no such file or directory here, and the")
    assert reason in message
    assert "check the id and the network" in message


@pytest.mark.slow
def test_an_unreachable_hub_is_explained(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        message = locate_elsewhere("owner/toy", endpoint, tmp_path)
        assert message.startswith("refused: owner/toy: no such file or directory, the hub's cache")
        assert "the Hugging Face hub cannot be reached (Connection refused)" in message
        offline = locate_elsewhere("owner/toy", endpoint, tmp_path, HF_HUB_OFFLINE="1")
        assert offline.startswith("refused: owner/toy: no such file or directory, the hub's cache")
        assert "HF_HUB_OFFLINE" in offline


@pytest.mark.slow
def test_a_hub_that_never_answers_is_not_waited_for(hub: str, tmp_path: Path) -> None:
    wanted = locate_elsewhere("owner/toy", hub, tmp_path)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Both at once, because they wait for seconds.
        with ThreadPoolExecutor() as pool:
            found, message = pool.map(
                lambda name: locate_elsewhere(name, endpoint, tmp_path),
                ("owner/toy", "owner/other"),
            )
        assert found == wanted
        assert "the Hugging Face hub cannot be reached (" in message


def test_a_download_without_its_weights_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    assert find_download("a/b@c") is None
    (snapshot / "model.safetensors").touch()
    assert find_download("a/b@c") == snapshot
    assert find_download("a/b@d") is find_download("a/b") is None
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c")
    assert find_download("a/b") == snapshot


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\udcff"])
def test_other_than_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_json(path)


def test_a_missing_file_of_a_model_is_named_without_the_number_of_the_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    wanted = f"{tmp_path}: lacks config.json; it holds model.safetensors; give a directory with all"
    with pytest.raises(WeightsError, match=wanted):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(WeightsError, match=r"cannot be read as JSON \(Is a directory\)$"):
        read_json(tmp_path / "config.json")


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{tmp_path}: holds neither"):
        find_weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert find_weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    (tmp_path / "model.safetensors").touch()
    assert find_weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def write_index(directory: Path, weight_map: Any) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_names_its_shards(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        (tmp_path / name).touch()
    write_index(tmp_path, {"x": "s2", "y": "s1", "z": "s2"})
    assert find_weight_files(tmp_path) == [tmp_path / "s1", tmp_path / "s2"]


@pytest.mark.parametrize(
    "weight_map",
    [
        *({"x": name} for name in ("gone", "../secret", "..", "OUTSIDE", 1, None, ["s1"])),
        *({}, [], "s1", None),
    ],
)
def test_an_index_that_names_anything_else_is_refused(tmp_path: Path, weight_map: Any) -> None:
    (tmp_path / "secret").touch()
    directory = tmp_path / "model"
    directory.mkdir()
    if weight_map == {"x": "OUTSIDE"}:
        weight_map = {"x": str(tmp_path / "secret")}
    write_index(directory, weight_map)
    with pytest.raises(WeightsError, match=r"index\.json"):
        find_weight_files(directory)


def write_safetensors(path: Path) -> Path:
    path = path.with_suffix(".safetensors")
    save_file(TENSORS, path)
    return path


def write_zip(path: Path) -> Path:
    torch.save(TENSORS, path)
    return path


WRITERS = [write_safetensors, write_zip]


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_read_back(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    tensors = read_tensors(write(tmp_path / "weights.bin"))
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("write", WRITERS)
def test_damaged_files_are_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "weights.bin")
    data = path.read_bytes()
    source = random.Random(0)
    for length in sorted({0, 1, 8, len(data) - 1, *source.sample(range(len(data)), 20)}):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match="weights"):
            read_tensors(path)


@pytest.mark.parametrize("write", WRITERS)
def test_altered_files_are_read_or_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "weights.bin")
    data = path.read_bytes()
    source = random.Random(1)
    num_refused = 0
    for position in source.choices(range(len(data)), k=200):
        altered = bytearray(data)
        altered[position] ^= 1 << source.randrange(8)
        path.write_bytes(altered)
        try:
            read_tensors(path)
        except WeightsError:
            num_refused += 1
    assert num_refused > 0


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.bin", "directory.safetensors", "dir"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    if name.startswith("dir"):
        (tmp_path / name).mkdir()
    with pytest.raises(WeightsError, match=name):
        read_tensors(tmp_path / name)


def test_classes_are_read_only_if_allowed(tmp_path: Path) -> None:
    path = tmp_path / "esm.pt"
    torch.save({"cfg": {"model": Namespace(layers=6)}, "model": TENSORS}, path)
    with pytest.raises(WeightsError, match=r"names argparse\.Namespace\."):
        read_pickle(path)
    assert read_pickle(path, [Namespace])["cfg"]["model"].layers == 6
    with pytest.raises(WeightsError, match=r"names argparse\.Namespace\."):
        read_pickle(path)  # the allowance is over


@pytest.mark.parametrize(
    ("value", "found"),
    [([1, 2], "list"), (torch.ones(2), "Tensor"), ({"cfg": {}, **TENSORS}, "'cfg' is a dict")],
)
def test_other_than_a_state_dict_is_refused(tmp_path: Path, value: Any, found: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(value, path)
    with pytest.raises(WeightsError, match=f"a plain state dict was expected, found .*{found}"):
        read_tensors(path)


def test_a_tensor_for_which_the_file_has_no_room_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"x": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with pytest.raises(WeightsError, match=r"weights\.bin: refused.* x claims .*does not fit"):
        read_tensors(path)


@pytest.mark.parametrize("wrappers", ["module.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_wrappers_are_left_off(tmp_path: Path, wrappers: str) -> None:
    path = tmp_path / "weights.bin"
    torch.save({wrappers + name: tensor for name, tensor in TENSORS.items()}, path)
    assert set(read_tensors(path)) == set(TENSORS)
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert set(read_tensors(path)) == {"module.a", "b"}


def test_an_adapter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.esm.query.lora_A.weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"holds a LoRA adapter, .* merge it into that model"):
        read_tensors(path)
    with pytest.raises(WeightsError, match=r"holds neither .*, but a LoRA adapter"):
        find_weight_files(tmp_path)


def write_pointer(path: Path) -> Path:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    return path


def write_web_page(path: Path) -> Path:
    path.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    return path


def write_text(path: Path) -> Path:
    path.write_bytes(b"Entry not found\n")
    return path


def write_nothing(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_pointer, "it is a Git LFS pointer"),
        (write_web_page, "it is a web page"),
        (write_text, "it is a text file, which begins with 'Entry not found"),
        (write_nothing, "the file is empty"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "config.json"])
def test_other_files_are_named(
    tmp_path: Path, write: Callable[[Path], Path], words: str, name: str
) -> None:
    path = write(tmp_path / name)
    read = read_json if name.endswith(".json") else read_tensors
    with pytest.raises(WeightsError, match=f"{name}: .*; {words}"):
        read(path)


def test_a_file_that_holds_no_weights_is_named_before_a_backend_looks(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.bin: is a Git LFS pointer, .*`git lfs pull`"):
        locate_weights(str(write_pointer(tmp_path / "model.bin")), [])
    # What torch writes is a zip archive too, and no mistake.
    torch.save(TENSORS, tmp_path / "weights.bin")
    assert locate_weights(str(tmp_path / "weights.bin"), []) == tmp_path / "weights.bin"


def test_a_zip_archive_of_something_else_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("esm2.pt", b"")
    with pytest.raises(WeightsError, match=r"not one of torch\.save .*; unpack it"):
        read_tensors(tmp_path / "model.pt")


def test_half_a_file_of_torch_is_cut_off(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(WeightsError, match="probably cut off; copy or download it again"):
        read_tensors(path)


@pytest.mark.slow
def test_the_hubs_own_directories_are_explained(hub: str, tmp_path: Path) -> None:
    locate_elsewhere("owner/toy", hub, tmp_path)
    own = tmp_path / "hub" / "models--owner--toy"
    snapshot = own / "snapshots" / COMMITS["main"]
    with pytest.raises(WeightsError, match=f"give the hub id owner/toy, or {snapshot}"):
        locate_weights(str(own), [])
    for several in (tmp_path, tmp_path / "hub"):
        with pytest.raises(WeightsError, match="is the cache of the Hugging Face hub"):
            locate_weights(str(several), [])
    assert locate_weights(str(snapshot), []) == snapshot

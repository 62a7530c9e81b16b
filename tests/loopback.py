"""A hub and a file server on this machine, which misbehave as servers do on bad days."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves files by path, and models by `owner/name@revision` as the Hugging Face hub does.

    Attributes:
        files: The content of each path.
        models: The files of each model; names with `.bin`, `.safetensors` are large files there.
        faults: What goes wrong with the next downloads of a file, by its name: `cut` (the
            connection ends after a third), `long` and `short` (a length that is not true), `page`
            (a web page instead), `flip` (one other byte), `moved` (a redirection) or `down` (an
            error).
        requests: The method, the path and the range of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.models: dict[str, Mapping[str, bytes]] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges_of(self, name: str) -> list[str | None]:
        """Return the range of each download of a file."""
        return [
            range_
            for method, path, range_ in self.requests
            if method == "GET" and path.endswith(f"/{name}")
        ]


@contextmanager
def running_server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").removeprefix("moved/")
        self.server.requests.append((self.command, f"/{path}", self.headers["Range"]))
        hub = re.fullmatch(
            r"(?P<api>api/models/)?(?P<repo>[^/]+/[^/]+)/(?P<what>tree|revision|paths-info|resolve)"
            r"/(?P<revision>[^/]+)/?(?P<file>.*)",
            path,
        )
        if path in self.server.files:
            self._send_file(path, self.server.files[path], {})
        elif hub is None:
            self._send(404, b"")
        else:
            self._answer_as_hub(hub)

    do_HEAD = do_POST = do_GET

    def _answer_as_hub(self, asked: re.Match[str]) -> None:
        files = self.server.models.get(f"{asked['repo']}@{asked['revision']}")
        length = int(self.headers["Content-Length"] or 0)
        self.rfile.read(length)  # paths-info gets more paths than were asked for
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif asked["what"] == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"id": asked["repo"], "sha": asked["revision"], "siblings": siblings})
        elif asked["what"] in ("tree", "paths-info"):
            self._send_json([describe(name, data) for name, data in files.items()])
        elif asked["file"] not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            data = files[asked["file"]]
            described = describe(asked["file"], data)
            digest = described.get("lfs", described)["oid"]
            about = {"ETag": f'"{digest}"', "X-Repo-Commit": asked["revision"]}
            self._send_file(asked[0], data, about)

    def _send_file(self, path: str, data: bytes, about: dict[str, str]) -> None:
        faults = self.server.faults.get(path.rpartition("/")[2], [])
        fault = faults.pop(0) if faults and self.command == "GET" else None
        if fault == "moved":
            return self._send(302, b"", {"Location": f"/moved/{path}"})
        if fault == "down":
            return self._send(503, b"")
        if fault == "page":
            return self._send(200, PAGE, {"Content-Type": "text/html"})
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        status, start = 200, 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            status, start = 206, int(found[1])
            about = about | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        rest = data[start:]
        length = len(rest) + {"long": 7, "short": -7}.get(fault or "", 0)
        self._send(status, rest[: len(rest) // 3] if fault == "cut" else rest, about, length)
        self.close_connection = fault is not None
        return None

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, data: bytes, about: Mapping[str, str] = {}, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in about.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Stay silent."""


def describe(name: str, data: bytes) -> dict[str, Any]:
    """Return what the hub says of a file: the id of its blob, or the SHA-256 of a large file."""
    about = {"type": "file", "path": name, "size": len(data), "oid": git_blob(data)}
    if name.endswith((".bin", ".safetensors")):
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        about["lfs"] = lfs
    return about

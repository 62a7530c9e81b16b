"""Fetches one file from a web server or a directory, and checks digests."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from virnucpro.backend.contents import explain_no_weights
from virnucpro.backend.digests import read_sha256
from virnucpro.backend.weights import drop_hub_handler
from virnucpro.errors import WeightsError, on_one_line
from virnucpro.runtime.locks import in_turn


def digest_like(path: Path, digest: str) -> str:
    """Return the digest of a file, of the same kind as `digest`.

    Args:
        path: The file.
        digest: `sha256:HEX`, or `git:HEX` for the id of a git blob.
    """
    if digest.startswith("sha256:"):
        return f"sha256:{read_sha256(path)}"
    # git digests `blob SIZE`, a NUL and the content. SHA-1 names the file; it protects nothing that
    # the published id does not.
    sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return f"git:{hashlib.file_digest(file, lambda: sha1).hexdigest()}"


def fetch_file(source: str, path: Path, digest: str) -> None:
    """Bring a file to `path`, unless it is there; go on where an earlier attempt broke off.

    Args:
        source: An address, also of the kind `file:`.
        path: Where the file goes. Its directory is made.
        digest: The digest that it must have; empty for any.

    Raises:
        WeightsError: The file cannot be fetched, or has another digest.
    """
    # A directory of shared models may be read-only.
    if digest and path.is_file() and digest_like(path, digest) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A half file under the final name would be taken for a whole one.
    part = path.with_name(f"{path.name}.part")
    # Jobs of an array start at the same time, and all want the same file.
    with in_turn(path.with_name(f".{path.name}.lock")):
        if not digest:
            # Without a digest nobody can tell whether the rest would fit this beginning.
            part.unlink(missing_ok=True)
            _fetch(source, part)
            part.replace(path)
            return
        if path.is_file() and digest_like(path, digest) == digest:
            return
        # An earlier attempt may have been killed between the last byte and the renaming.
        if not (part.is_file() and digest_like(part, digest) == digest):
            _fetch(source, part)
        found = digest_like(part, digest)
        if found != digest:
            # Proxies and login pages answer with status 200, so only the content gives them away.
            kind = explain_no_weights(part)
            # Not a beginning of the right file, with which another attempt could go on.
            part.unlink()
            raise WeightsError(
                f"{source}: has the digest {found}, wanted {digest}"
                f"{f'; it {kind}' if kind else ''}. Nothing of it was kept; try again, or name "
                "another source with --mirror"
            )
        part.replace(path)


def _fetch(source: str, part: Path) -> None:
    parsed = urlsplit(source)
    try:
        if parsed.scheme == "file":
            shutil.copyfile(unquote(parsed.path), part)
            return
        from huggingface_hub.file_download import http_get

        drop_hub_handler()
        with part.open("ab") as file:
            http_get(source, file, resume_size=file.tell(), displayed_filename=part.stem)
    # The releases of huggingface_hub raise errors of three HTTP libraries.
    except Exception as error:
        kept = part.stat().st_size if part.is_file() else 0
        begun = f" The first {kept:,} bytes are kept, and the next attempt continues there."
        raise WeightsError(
            f"{source}: cannot be fetched ({on_one_line(error)}).{begun if kept else ''} Check the "
            "address and the network, or name another source with --mirror"
        ) from error

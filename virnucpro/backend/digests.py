"""Digesting files of weights, and comparing them with what is known of them, in one reading.

A zip archive has the CRC-32 of each member, which torch does not compare when it maps a file. The
Hugging Face hub names a file's digest, and its cache keeps that name.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from virnucpro.backend.remembered import get_state, recall, remember
from virnucpro.errors import WeightsError, brief, first_line

_BLOCK_BYTES = 1 << 20
_LOCAL_HEADER_BYTES = 30
_UTF8_FLAG = 0x800
_HUB_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TORCH_SUFFIXES = frozenset({".pt", ".pth", ".bin"})


class _Member(NamedTuple):
    """A member of a zip archive: where its bytes lie, and what their CRC-32 should be."""

    name: str
    start: int
    num_bytes: int
    crc: int


def digest_files(paths: Sequence[Path], *, anew: bool = False) -> str:
    """Return the SHA-256 of one file, or of the names and SHA-256s of several, as `sha256:HEX`.

    The same bytes under the same names give the same digest in any directory. A large file that has
    not changed since an earlier run is not read again.

    Args:
        paths: The files.
        anew: Whether to read also files whose digests are remembered.

    Raises:
        WeightsError: A file cannot be read; or it is damaged, as its own checksums or the hub's
            digest of it show.
    """
    digests = []
    # By name: the same files may lie in several directories, and come in any order.
    for path in sorted(paths, key=lambda path: path.name):
        try:
            state = get_state(path)
            digest = None if anew else recall(path, state)
            if digest is None:
                digest = _digest(path)
                remember(path, state, digest)
            digests.append((path.name, digest))
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({first_line(error)})") from error
    if len(digests) == 1:
        return f"sha256:{digests[0][1]}"
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def read_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as it is now, in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: Path) -> str:
    sha256 = hashlib.sha256()
    # The hub knows small files by git's digest, which begins with the size.
    git_sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    known = _known_digest(path)
    hashes = [sha256, git_sha1] if known else [sha256]
    members = _list_members(path)
    with path.open("rb") as file:
        for member in members:
            _feed(file, member.start - file.tell(), hashes)
            # One reading for both: a file of 12 GB takes long to read.
            if _feed(file, member.num_bytes, hashes) != member.crc:
                raise WeightsError(
                    f"{path}: is damaged, because {brief(member.name)} in it does not fit its "
                    "checksum (CRC-32); download or copy the file again"
                )
        # What follows the last member belongs to the digest, too.
        _feed(file, sys.maxsize, hashes)
    if known and known not in [one.hexdigest() for one in hashes]:
        raise WeightsError(
            f"{path}: is damaged, or was changed: the Hugging Face hub says that its digest is "
            f"{known}. Remove the file and download it again. If you changed it on purpose, give "
            "a copy of its directory outside the hub's cache"
        )
    return sha256.hexdigest()


def _feed(file: BinaryIO, num_bytes: int, hashes: Sequence[Any]) -> int:
    """Read up to `num_bytes`, give them to `hashes`, and return their CRC-32."""
    crc = 0
    while block := file.read(min(num_bytes, _BLOCK_BYTES)):
        num_bytes -= len(block)
        crc = zlib.crc32(block, crc)
        for one in hashes:
            one.update(block)
    return crc


def _list_members(path: Path) -> list[_Member]:
    """Return the members of a file of `torch.save` in their order; none if it has no checksums."""
    if path.suffix not in _TORCH_SUFFIXES or not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            members = [
                _Member(entry.filename, _find_start(file, entry), entry.compress_size, entry.CRC)
                for entry in entries
                # Compressed members are refused later (`check_torch_zip`).
                if entry.compress_type == zipfile.ZIP_STORED
            ]
    # `digest_files` explains it: the file is not damaged, but it cannot be read.
    except OSError:
        raise
    # With a damaged directory it raises many kinds of errors.
    except Exception as error:
        raise WeightsError(f"{path}: is a damaged zip archive ({first_line(error)})") from error
    # They are compared in one reading, from front to back. So none may begin inside another.
    overlap = any(one.start + one.num_bytes > other.start for one, other in pairwise(members))
    if overlap or len({member.name for member in members}) < len(members):
        raise WeightsError(
            f"{path}: is damaged, because members of its zip archive overlap or have one name"
        )
    # `torch.serialization.set_crc32_options(False)` writes 0 for all.
    return members if any(member.crc for member in members) else []


def _find_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of a member begin; its header must repeat what the directory says."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    mark, name_bytes, extra_bytes = struct.unpack("<4s22xHH", header)
    # As the zip format says: names without this flag are in the code page 437.
    encoding = "utf-8" if entry.flag_bits & _UTF8_FLAG else "cp437"
    name = file.read(name_bytes).decode(encoding)
    if (mark, name, entry.file_size) != (b"PK\3\4", entry.orig_filename, entry.compress_size):
        raise ValueError(f"the header of {brief(entry.filename)} contradicts the directory")
    return file.tell() + int(extra_bytes)


def _known_digest(path: Path) -> str | None:
    """Return the digest that the hub gave for a downloaded file: SHA-256, or git's SHA-1."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and _HUB_DIGEST.fullmatch(blob.name):
        return blob.name
    # Beside a file that was downloaded to a directory of the user's choice.
    metadata = path.parent / ".cache/huggingface/download" / f"{path.name}.metadata"
    try:
        _, etag, written = metadata.read_text(encoding="utf-8").splitlines()
        # A second of grace, because some file systems keep whole seconds only.
        is_unchanged = path.stat().st_mtime - 1 <= float(written)
    except (OSError, ValueError):
        return None
    return etag if is_unchanged and _HUB_DIGEST.fullmatch(etag) else None

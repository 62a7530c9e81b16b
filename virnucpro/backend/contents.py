"""Telling what a file is that somebody took for a model or for sequences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from virnucpro.errors import name_few

HEAD_BYTES = 512
"""What `identify` wants to see of a file."""

ADAPTER = (
    "a LoRA adapter, which changes another model; merge it into that model (merge_and_unload of "
    "peft), save the result, and give its directory"
)

_ZIP = b"PK\3\4"
_UNPACK = "unpack it, and give a file in it"
_POINTER = (
    "a Git LFS pointer, which only stands for the real file; get the real file with "
    "`git lfs pull`, or download it again"
)
_WEB_PAGE = "a web page (HTML), as a failed download leaves; open the address in a browser to see"

# In this order: a tar archive begins with the name of a file, which can be anything.
_KINDS: Sequence[tuple[re.Pattern[bytes], str]] = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), description)
    for pattern, description in (
        (rb"version https://git-lfs", _POINTER),
        (rb".{257}ustar", f"a tar archive; {_UNPACK}"),
        (rb"PK\x03\x04", f"a zip archive; {_UNPACK}"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!", f"a compressed archive; {_UNPACK}"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "a compressed file; decompress it first"),
        (rb"\s*<(!doctype html|html|head|script)", _WEB_PAGE),
        (rb"\s*<(\?xml|error)", "an XML document, as a failed download leaves; download it again"),
        (rb"@(HD|SQ|RG|PG|CO)\t", "a SAM file; `samtools fasta` converts it"),
        (rb"H\tVN:Z:|S\t\S+\t", "an assembly graph (GFA); `gfatools gfa2fa` converts it"),
        (rb"NCBI\.sra", "an SRA archive; `fasterq-dump` converts it"),
        (rb"LOCUS  |ID   \S", "a GenBank or EMBL file; save its sequences as FASTA"),
        (rb"##gff|##fileformat=VCF", "a table of features; give the FASTA file of its sequences"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"%PDF", "a PDF document"),
    )
]


def identify(head: bytes) -> str | None:
    """Return what a file is whose first bytes are `head`, and what to do; None if unknown.

    The answer continues a sentence such as "contigs.fa is ...".
    """
    return next((text for pattern, text in _KINDS if pattern.match(head)), None)


def _read_head(path: Path) -> bytes | None:
    """Return the first bytes of a file; None if it is a directory or cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(HEAD_BYTES)
    return None


def explain_file(path: Path) -> str:
    """Return what a file is that is no model, to end a message with; empty if unknown."""
    head = _read_head(path)
    if head is None:
        return ""
    if not head:
        return "; the file is empty"
    kind = identify(head)
    # A text tells by its beginning what it is, such as a server's message in place of a file.
    if kind is None and head.isascii() and head.decode("ascii").replace("\n", "").isprintable():
        kind = f"a text file, which begins with {head[:30].decode('ascii')!r}"
    return f"; it is {kind}" if kind else ""


def explain_no_weights(path: Path) -> str | None:
    """Return what a file is if its first bytes tell that it holds no weights; None otherwise."""
    head = _read_head(path) or b""
    # torch writes zip archives.
    kind = None if head.startswith(_ZIP) else identify(head)
    return f"is {kind}" if kind else None


def explain_no_zip(path: Path) -> str:
    """Return what a file is that is no whole zip archive, to end a message with."""
    if (_read_head(path) or b"").startswith(_ZIP):
        return ", but begins like one, so it was probably cut off; copy or download it again"
    if kind := explain_file(path):
        return f"{kind}; wanted a .safetensors file, or one that torch.save wrote"
    return "; if it is older and you trust it, load it with torch and save it again"


def explain_directory(directory: Path) -> str:
    """Return what a directory holds in place of weights, to end a message with."""
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if any(name.startswith("adapter_") for name in names):
        return f", but {ADAPTER}"
    return f"; it holds {name_few(names) or 'nothing'}"


def explain_hub_cache(path: Path) -> str | None:
    """Return what to give instead of a directory of the hub's cache; None if it is none."""
    if (path / "config.json").exists() or not path.is_dir():
        return None
    if any(path.glob("models--*")) or any(path.glob("hub/models--*")):
        return (
            "is the cache of the Hugging Face hub, for several models; give the hub id of one "
            "model (owner/name)"
        )
    if not path.name.startswith("models--") or not (path / "snapshots").is_dir():
        return None
    name = path.name.removeprefix("models--").replace("--", "/")
    # The directory of a model in the cache has no weights itself. Its snapshots have them.
    snapshots = sorted(map(str, (path / "snapshots").iterdir()))
    return f"is a directory of the hub's cache, without weights; give the hub id {name}" + (
        f", or {snapshots[-1]}" if snapshots else "; nothing was downloaded here"
    )

"""Telling what a file is that somebody took for a model or for sequences."""

from __future__ import annotations

import re
from collections.abc import Sequence

HEAD_BYTES = 512
"""What `identify` wants to see of a file."""

_UNPACK = "unpack it, and give a file in it"
_POINTER = (
    "a Git LFS pointer, which only stands for the real file; fetch that with `git lfs pull`, or "
    "download it again"
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
        (rb"NCBI\.sra", "an SRA archive; `fasterq-dump` converts it"),
        (rb"LOCUS  |ID   \S", "a GenBank or EMBL file; save its sequences as FASTA"),
        (rb"##gff|##fileformat=VCF", "a table of features, without sequences"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"%PDF", "a PDF document"),
    )
]


def identify(head: bytes) -> str | None:
    """Return what a file is whose first bytes are `head`, and what to do; None if unknown.

    The answer continues a sentence such as "contigs.fa is ...".
    """
    return next((text for pattern, text in _KINDS if pattern.match(head)), None)

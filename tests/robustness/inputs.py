"""Files of sequences of every kind, and plain parsers that say what is in them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pysam
from xopen import xopen

from tests.runs import write_reads

INPUTS = {
    "inputs": "inputs/*",
    "zstd": "inputs/zstd/*",
    "bam": "inputs/bam/*",
    "cram": "inputs/cram/*",
}
"""The kinds of inputs, and where they are."""

_UNMAPPED, _REVERSE, _NOT_PRIMARY = 4, 16, 0x900
_FLAGS = (_UNMAPPED, 0, 77, 141, _UNMAPPED | _REVERSE, _UNMAPPED | 0x100)


def write_inputs(directory: Path) -> None:
    """Write small files of each kind."""
    directory.mkdir()
    fasta = write_reads(directory / "a.fa", 12).read_bytes()
    lines = fasta.decode().splitlines()
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    text = "".join(f"@{name[1:]}\n{read}\n+\n{'I' * len(read)}\n" for name, read in pairs)
    fastq = text.encode()
    (directory / "a.fq").write_bytes(fastq)
    (directory / "a.fa.gz").write_bytes(_in_two(gzip.compress, fasta))
    (directory / "a.fq.gz").write_bytes(gzip.compress(fastq))
    (directory / "a.fa.bz2").write_bytes(bz2.compress(fasta))
    (directory / "a.fa.xz").write_bytes(lzma.compress(fasta))
    for name in ("zstd", "bam", "cram"):
        (directory / name).mkdir()
    (directory / "zstd/a.fa.zst").write_bytes(_in_two(_zstd, fasta))
    (directory / "zstd/a.fq.zst").write_bytes(_zstd(fastq))
    _write_alignments(directory / "bam/a.bam", "wb")
    # Without compression, no checksum protects the content.
    content = gzip.decompress((directory / "bam/a.bam").read_bytes())
    (directory / "bam/plain.bam").write_bytes(content)
    # The first of these versions has no checksums.
    for version in ("2.1", "3.0", "3.1"):
        _write_alignments(
            directory / f"cram/{version}.cram", "wc", f"version={version}", "no_ref=1"
        )


def _in_two(compress: Callable[[bytes], bytes], content: bytes) -> bytes:
    half = len(content) // 2
    return compress(content[:half]) + compress(content[half:])


def _zstd(content: bytes) -> bytes:
    compressed = io.BytesIO()
    with xopen(compressed, "wb", format="zst", threads=0) as file:
        file.write(content)
    return compressed.getvalue()


def _write_alignments(path: Path, mode: str, *options: str) -> None:
    chance = random.Random(5)
    header = {"HD": {"VN": "1.6"}, "SQ": [{"SN": "host", "LN": 2_000}]}
    with pysam.AlignmentFile(
        str(path), mode, header=header, format_options=[one.encode() for one in options]
    ) as file:
        for number in range(30):
            read = pysam.AlignedSegment(file.header)
            read.query_name, read.flag = f"read_{number}", _FLAGS[number % len(_FLAGS)]
            length = chance.choice([37, 100, 150])
            read.query_sequence = "".join(chance.choices("ACGTN", k=length))
            read.query_qualities = pysam.qualitystring_to_array("I" * length)
            read.set_tag("XX", "text behind the qualities")
            if not read.flag & _UNMAPPED:
                read.reference_id, read.reference_start = 0, number
                read.cigarstring = f"{length}M"
            file.write(read)


def parse_plainly(path: Path) -> list[list[str]]:
    """Return headers and letters, or raise what the libraries raise."""
    content = path.read_bytes()
    if path.suffix in (".bam", ".cram"):
        return _parse_alignments(path)
    decompressors = {b"\x1f\x8b": gzip.decompress, b"BZ": bz2.decompress, b"\xfd7": lzma.decompress}
    decompress = decompressors.get(content[:2], bytes)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        with xopen(path, "rb", format="zst", threads=0) as file:
            content = file.read()
    text = decompress(content).decode("utf-8", "surrogateescape")
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    if text.lstrip().startswith("@"):
        lines = [line for line in lines if line]
        return [[lines[i][1:], lines[i + 1]] for i in range(0, len(lines), 4)]
    records: list[list[str]] = []
    for line in lines:
        if line.startswith(">"):
            records.append([line[1:], ""])
        elif line:
            records[-1][1] += line.replace(" ", "")
    return records


def _parse_alignments(path: Path) -> list[list[str]]:
    """Return the unmapped reads that htslib finds."""
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return [
            [read.query_name or "", read.get_forward_sequence() or ""]
            for read in file.fetch(until_eof=True)
            if read.flag & _UNMAPPED and not read.flag & _NOT_PRIMARY
        ]

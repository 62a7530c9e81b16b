"""What `RecordReader` needs of each format, above what libraries have."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import dnaio

from virnucpro.backend.interface import Requirement
from virnucpro.errors import InputError, first_line
from virnucpro.sequences.records import Record

LINES_OF_FASTQ = 4

# Of the 32 bytes before a read's name: its reference, the name's length, the operations, the flag,
# the number of letters, and the mate's reference.
_BAM_FIELDS = struct.Struct("<i4xB3xHHii8x")
_BAM_NAME = re.compile(rb"[!-~]+\0")  # as the specification has it
_BAM_LETTERS = str.maketrans("0123456789abcdef", "=ACMGRSVTWYHKDBN")
_UNMAPPED, _REVERSE, _NOT_PRIMARY = 0x4, 0x10, 0x900
# Far above any read, and any header; a damaged file must not fill the memory.
_MAX_BAM_BYTES = 1 << 28


class HashingReader(io.RawIOBase):
    """Passes on the bytes of a binary file, and counts and digests them."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the file, and return the number of bytes; 0 at the end."""
        # Digested while it is read: standard input cannot be read a second time.
        num_read: int = self._source.readinto(buffer)
        self.sha256.update(memoryview(buffer)[:num_read])
        self.num_bytes += num_read
        return num_read

    def drain(self) -> None:
        """Read the bytes that a decompressor leaves, such as padding after the last stream."""
        buffer = bytearray(1 << 16)
        # The digest must be that of the whole file, as sha256sum would print it.
        while self.readinto(buffer):
            pass


class BlockReader(io.RawIOBase):
    """Reads blocks of bytes as a file."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the next block, and return the number of bytes; 0 at the end."""
        # A block may be larger than the buffer, so what is left of it waits for the next call.
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        num_read = min(len(buffer), len(self._rest))
        buffer[:num_read] = self._rest[:num_read]
        self._rest = self._rest[num_read:]
        return num_read


class _LineHandle:
    """An iterator of lines, with the part of a text file's interface that Biopython uses."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def readline(self) -> str:
        """Return the next line, or an empty string at the end."""
        return next(self._lines, "")

    def read(self, _: int) -> str:
        """Return an empty string, because Biopython asks by `read(0)` whether this is text."""
        return ""


def read_fasta(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield headers and letters of FASTA, of which the first line is a header.

    Biopython does the same, but importing it took a fifth of the time of a short command.
    """
    header, parts = "", list[str]()
    for number, line in enumerate(lines):
        if line[0] != ">":
            parts.append(line.rstrip())
            continue
        if number:
            yield header, "".join(parts).replace(" ", "")
        header, parts = line[1:].rstrip(), []
    yield header, "".join(parts).replace(" ", "")


def read_any_fastq(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Yield headers, letters and qualities of FASTQ with any number of lines in a record.

    Raises:
        ValueError: It is no FASTQ, or damaged.
    """
    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    handle: Any = _LineHandle(lines)
    return FastqGeneralIterator(handle)


def whole_fastq_records(text: bytes) -> bytes:
    """Return the beginning of `text` that has whole records, of four lines each."""
    end = len(text)
    for _ in range(text.count(b"\n") % LINES_OF_FASTQ + 1):
        # Step back over the lines of the record that is not whole yet, and over half a line.
        end = text.rfind(b"\n", 0, end)
    return text[: end + 1]


def read_four_line_fastq(text: bytes) -> list[Record] | None:
    """Return the records of FASTQ with four lines each; None if it is not of this kind.

    dnaio refuses records of more lines, blank lines between records, and letters beyond ASCII.
    """
    try:
        return [
            Record(record.name.rstrip(), record.sequence)
            for record in dnaio.FastqReader(io.BytesIO(text))
        ]
    # No error yet: Biopython reads on, and can also say in which line something is wrong.
    except dnaio.FastqFormatError:
        return None


def read_bam(blocks: Iterable[bytes]) -> Iterator[Record]:
    """Yield the unmapped reads of a BAM file.

    The SAM specification (section 4.2) describes the format. dnaio's reader of BAM knows single
    reads only, and a damaged file ends the process.

    Args:
        blocks: The decompressed file.

    Raises:
        ValueError: The file is damaged.
    """
    from Bio.Seq import reverse_complement

    file: io.BufferedReader[Any] = io.BufferedReader(BlockReader(blocks))
    _skip(file, 4)  # the magic number
    _skip(file, _read_size(file))
    num_references = _read_size(file)
    for _ in range(num_references):
        _skip(file, _read_size(file) + 4)
    while file.peek(1):
        data = file.read(size := _read_size(file))
        if len(data) < max(size, _BAM_FIELDS.size):
            raise ValueError("a read is cut off")
        reference, name_length, num_cigar, flag, num_letters, mate = _BAM_FIELDS.unpack_from(data)
        name = data[_BAM_FIELDS.size :][:name_length]
        start = _BAM_FIELDS.size + name_length + 4 * num_cigar
        stop = start + (num_letters + 1) // 2
        # A file without compression has no checksum, so what a read says of itself is compared.
        if not (
            _BAM_NAME.fullmatch(name)
            and -1 <= min(reference, mate) <= max(reference, mate) < num_references
            and num_letters >= 0
            and stop + num_letters <= size  # each letter has a quality
        ):
            raise ValueError("a read contradicts itself")
        if flag & _UNMAPPED and not flag & _NOT_PRIMARY:
            letters = data[start:stop].hex().translate(_BAM_LETTERS)[:num_letters]
            if flag & _REVERSE:
                letters = str(reverse_complement(letters))  # type: ignore[no-untyped-call]
            yield Record(name[:-1].decode("ascii"), letters)


def _read_size(file: io.BufferedReader[Any]) -> int:
    size = int.from_bytes(file.read(4), "little")
    # Before so much memory is taken.
    if size > _MAX_BAM_BYTES:
        raise ValueError(f"a size of {size:,} bytes")
    return size


def _skip(file: io.BufferedReader[Any], num_bytes: int) -> None:
    if len(file.read(num_bytes)) < num_bytes:
        raise ValueError("the header is cut off")


def read_cram(path: str) -> Iterator[Record]:
    """Yield the unmapped reads of a CRAM file.

    Raises:
        InputError: pysam is not installed, or cannot read the file.
    """
    try:
        import pysam
    except ImportError as error:
        raise InputError(
            f"{path}: is CRAM, and this {Requirement('pysam', 'virnucpro[cram]').explain(error)}, "
            "or convert the file (`samtools view -b -f 4`)"
        ) from error
    # htslib prints its own messages to standard error, past our log.
    verbosity = pysam.set_verbosity(0)
    try:
        with pysam.AlignmentFile(path, check_sq=False) as file:
            for read in file.fetch(until_eof=True):
                if read.flag & _UNMAPPED and not read.flag & _NOT_PRIMARY:
                    yield Record(read.query_name or "", read.get_forward_sequence() or "")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as CRAM ({first_line(error)}); is it complete? Aligned reads "
            "need the reference that they were aligned to (REF_PATH), or convert the file where "
            "that is (samtools view -b -f 4)"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)

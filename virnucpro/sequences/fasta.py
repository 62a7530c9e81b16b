"""Reading FASTA, FASTQ, BAM and CRAM, plain or compressed, from files and standard input."""

from __future__ import annotations

import io
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xopen import xopen

from virnucpro.backend.contents import HEAD_BYTES, identify
from virnucpro.config import STDIN
from virnucpro.errors import InputError, brief, count_who, first_line
from virnucpro.sequences.gunzip import MAGIC as GZIP_MAGIC
from virnucpro.sequences.gunzip import Gunzip
from virnucpro.sequences.judging import PLAIN_BYTES, VALID_BYTES, describe_letter, judge_alphabet
from virnucpro.sequences.parsing import (
    LINES_OF_FASTQ,
    BlockReader,
    HashingReader,
    read_any_fastq,
    read_bam,
    read_cram,
    read_fasta,
    read_four_line_fastq,
    whole_fastq_records,
)
from virnucpro.sequences.records import Record, record_id

if TYPE_CHECKING:
    from virnucpro.backend.interface import Alphabet

_BLOCK_BYTES = 1 << 17
# Larger FASTQ records are left to the parser that can explain them.
_MAX_FASTQ_BYTES = 1 << 24
# A record is whole in memory, at up to four bytes a letter. The longest human chromosome has a
# quarter of this limit, and with line breaks less than the half.
_MAX_RECORD_BYTES = 1_000_000_000
_LINE_BYTES = 50
_RNA_TO_DNA = str.maketrans("Uu", "Tt")
_POLY_G = (
    "in 20 or more G, as errors of some sequencers do. Such reads look viral: trim their ends "
    "first, for example with fastp"
)
_GAPS = "gaps (- or .), which are read as letters; if the records are aligned, remove the gaps"
_NO_UNMAPPED_READS = "holds no unmapped reads, and only these are read; `samtools fasta` writes all"

logger = logging.getLogger(__name__)


class RecordReader:
    """Iterates once over the records of a FASTA, FASTQ, BAM or CRAM file.

    The content decides the format and the compression (gzip, bzip2, xz, zstd), not the name. Text
    is UTF-8. Other bytes become surrogate escapes, so that an id is written exactly as it was read.
    Only the unmapped reads of BAM and CRAM are records.

    RNA is read as DNA: U becomes T. The `*` at the end of a protein is left off. At the end of the
    file, a warning counts the records that are RNA, have gaps, have `*` inside, or end in poly-G.

    Attributes:
        path: The path as the user gave it; `-` is standard input.
        sha256: Hex digest of the file's bytes as they are on disk, known when iteration has ended.
        num_bytes: Number of these bytes.
        num_records: Records read.
        num_changed: Records whose letters were changed by reading.

    Raises:
        InputError: During iteration: the file is missing, empty, damaged, or of another format, or
            a record has no id, has letters that are not in the alphabet, or is too long.
    """

    def __init__(
        self,
        path: str | Path,
        alphabet: Alphabet,
        *,
        change_letters: bool = True,
        judge_alphabet: bool = False,
        allow_empty: bool = False,
    ) -> None:
        """Prepare to read `path`.

        Args:
            path: The file; `-` is standard input.
            alphabet: What the letters should be.
            change_letters: False for what another program wrote for itself.
            judge_alphabet: Whether to refuse DNA where proteins are wanted, and the reverse.
            allow_empty: Whether a file without records is in order.
        """
        self.path = str(path)
        self.sha256 = ""
        self.num_bytes = 0
        self.num_records = 0
        self.num_changed = 0
        self._alphabet = alphabet
        self._change_letters = change_letters
        self._judges_alphabet = judge_alphabet
        self._allow_empty = allow_empty
        # By verb, and what the records are or have.
        self._findings: Counter[tuple[str, str]] = Counter()
        self._name = "standard input" if self.path == STDIN else self.path
        self._lack = "holds no records; look at the step that made it"
        self._line_number = 0
        # Of the record that is being read.
        self._start_line = 1
        self._record_size = 0

    def __iter__(self) -> Iterator[Record]:
        with self._open() as source:
            hashing = HashingReader(source)
            blocks = self._parse(self._read_blocks(hashing))
            if self._judges_alphabet:
                blocks = judge_alphabet(blocks, self._alphabet, self._name)
            for records in blocks:
                yield from records
                self.num_records += len(records)
                if self._alphabet == "dna":
                    has_tail = [record.sequence.endswith(20 * "G") for record in records]
                    self._findings["end", _POLY_G] += sum(has_tail)
        # An empty file is mostly the mistake of an earlier step.
        if not self.num_records and not self._allow_empty:
            raise InputError(
                f"{self._name}: {self._lack} (predict --allow-empty accepts such a file)"
            )
        # Only here: the digest of half a file would be that of another input.
        self.sha256 = hashing.sha256.hexdigest()
        self.num_bytes = hashing.num_bytes
        for (verb, what), num in (+self._findings).items():
            who = count_who(num, "record", verb, of=self.num_records)
            logger.warning("%s: %s %s", self._name, who, what)

    def read_fastq(self) -> Iterator[tuple[str, str, str]]:
        """Yield headers, letters and qualities as they are in the file; nothing if not FASTQ.

        Raises:
            InputError: During iteration: the file is missing or damaged.
        """
        with self._open() as source:
            lines = self._read_lines(self._read_blocks(HashingReader(source)))
            first = next((line for line in lines if line.strip()), "")
            if first.startswith("@"):
                try:
                    yield from read_any_fastq(itertools.chain([first], lines))
                except ValueError as error:
                    raise InputError(
                        f"{self._name}: is damaged FASTQ ({str(error)[:200]})"
                    ) from error

    def _open(self) -> AbstractContextManager[Any]:
        if self.path == STDIN:
            # It would wait in silence for somebody to type.
            if sys.stdin.isatty():
                raise InputError(f"{self._name}: is a terminal; name a file, or pipe sequences in")
            return nullcontext(sys.stdin.buffer)
        try:
            return Path(self.path).open("rb")
        except OSError as error:
            raise InputError(f"{self._name}: cannot be opened ({error.strerror})") from error

    def _read_blocks(self, hashing: HashingReader) -> Iterator[bytes]:
        """Yield the decompressed bytes, and read the file to its very end."""
        source = io.BufferedReader(hashing, _BLOCK_BYTES)
        gunzip = None
        try:
            if source.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC:
                gunzip = Gunzip(source)
            with gunzip or xopen(source, "rb", threads=0) as handle:
                while block := handle.read(_BLOCK_BYTES):
                    yield block
            # Only when all bytes were read is the digest that of the file.
            hashing.drain()
        # A lack of memory is no damage of the file.
        except MemoryError:
            raise
        # Each of the libraries that xopen chooses from has its own errors.
        except Exception as error:
            raise InputError(
                f"{self._name}: cannot be read beyond line {self._line_number}: it is damaged or "
                f"was cut off ({first_line(error)}); copy or compress it again"
            ) from error
        if gunzip is not None and gunzip.num_trailing:
            logger.warning(
                "%s: %s bytes after the compressed data are no gzip and were left out; the records "
                "before them are whole",
                self._name,
                f"{gunzip.num_trailing:,}",
            )
        if gunzip is not None and gunzip.lacks_end:
            logger.warning(
                "%s: the empty block that ends a bgzip file is missing, so the file was perhaps "
                "cut off; compare its size with the original",
                self._name,
            )

    def _parse(self, blocks: Iterator[bytes]) -> Iterator[list[Record]]:
        first = next(blocks, b"")
        all_blocks = itertools.chain([first], blocks)
        # BAM is compressed by bgzip, so its mark shows only after decompression.
        for mark, parse in ((b"BAM\1", self._parse_bam), (b"CRAM", self._parse_cram)):
            if first.startswith(mark):
                self._lack = _NO_UNMAPPED_READS
                return parse(all_blocks)
        kind = identify(first[:HEAD_BYTES])
        if kind is not None:
            raise InputError(f"{self._name}: FASTA or FASTQ was expected, and this is {kind}")
        if first.startswith(b"@"):
            return self._parse_fastq(all_blocks)
        return self._parse_text(all_blocks)

    def _parse_fastq(self, blocks: Iterator[bytes]) -> Iterator[list[Record]]:
        """Yield records quickly, and leave the rest to Biopython where that cannot be done."""
        text = b""
        for block in itertools.chain(blocks, [b""]):
            text += block
            taken = whole_fastq_records(text) if block else text
            # A record may be longer than a block, so more is read first.
            if not taken and len(text) < _MAX_FASTQ_BYTES:
                continue
            records = read_four_line_fastq(taken)
            if not records or not self._is_clean(taken, records):
                # From the first record that was not yielded: none is lost, and none comes twice.
                lines = self._read_lines(itertools.chain([text], blocks))
                yield from self._parse_lines(lines, read_any_fastq)
                return
            yield records
            self._line_number += LINES_OF_FASTQ * len(records)
            text = text[len(taken) :]

    def _is_clean(self, text: bytes, records: list[Record]) -> bool:
        """Tell whether `_check` would return each of the records as it is."""
        letters = "".join([sequence for _, sequence in records]).encode("ascii")
        return (
            b"\0" not in text
            and not letters.translate(None, PLAIN_BYTES[self._alphabet])
            and all(header for header, _ in records)
        )

    def _parse_text(self, blocks: Iterator[bytes]) -> Iterator[list[Record]]:
        block = next(blocks, b"")
        if b"\0" in block.lstrip().partition(b"\n")[0]:
            # Before the end of the line is read, which /dev/zero does not have.
            self._check_first_line("\0")
        lines = self._read_lines(itertools.chain([block], blocks))
        first = next((line for line in lines if line.strip()), "")
        if not first:
            return
        self._check_first_line(first)
        # FASTQ comes here if blank lines stand before its first record.
        parse = read_fasta if first[0] == ">" else read_any_fastq
        yield from self._parse_lines(itertools.chain([first], lines), parse)

    def _parse_lines(self, lines: Iterator[str], parse: Any) -> Iterator[list[Record]]:
        """Yield records one by one, so that an error says the line."""
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            return
        self._start_line = self._line_number
        try:
            for header, sequence, *_ in parse(itertools.chain([first], lines)):
                yield [self._check(Record(header, sequence), f"line {self._start_line}")]
                # The parser has already read the first line of the next record.
                self._start_line = self._line_number
                self._record_size = 0
        except ValueError as error:
            raise InputError(
                f"{self._name}, line {self._start_line}: the FASTQ record that starts here is "
                f"damaged ({str(error)[:200]}); is the file complete?"
            ) from error

    def _read_lines(self, blocks: Iterator[bytes]) -> Iterator[str]:
        """Yield and count the lines."""
        handle = io.TextIOWrapper(
            io.BufferedReader(BlockReader(self._count(blocks)), _BLOCK_BYTES),
            # Programs on Windows may write a mark of the encoding before the first letter.
            encoding="utf-8-sig",
            errors="surrogateescape",
        )
        for line in handle:
            self._line_number += 1
            yield line

    def _count(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the blocks as long as they are not too much for one record.

        A file of 1 kB may unpack to a line without an end.
        """
        for block in blocks:
            # A short line takes more memory than its letters.
            self._record_size += len(block) + _LINE_BYTES * block.count(b"\n")
            if self._record_size > _MAX_RECORD_BYTES:
                raise InputError(
                    f"{self._name}, line {self._start_line}: the record that starts here is longer "
                    f"than {_MAX_RECORD_BYTES:,} letters; leave it out, or cut it into several"
                )
            yield block

    def _parse_bam(self, blocks: Iterator[bytes]) -> Iterator[list[Record]]:
        number = 0
        try:
            for number, record in enumerate(read_bam(blocks), 1):
                yield [self._check(record, f"unmapped read {number}")]
        except ValueError as error:
            raise InputError(
                f"{self._name}: is a BAM file that is damaged after unmapped read {number} "
                f"({error}); copy it again"
            ) from error

    def _parse_cram(self, blocks: Iterator[bytes]) -> Iterator[list[Record]]:
        if self.path == STDIN:
            raise InputError("standard input: is CRAM, which is read from a file only; give a path")
        # Read to the end for the digest; pysam opens the file again.
        for _ in blocks:
            pass
        for number, record in enumerate(read_cram(self.path), 1):
            yield [self._check(record, f"unmapped read {number}")]

    def _check_first_line(self, line: str) -> None:
        # Many binary formats begin with a byte that is not UTF-8, and was read as an escape.
        if "\0" in line or "\udc80" <= line[0] <= "\udcff":
            raise InputError(
                f"{self._name}: is binary or UTF-16, not text; FASTA or FASTQ was expected "
                "(save UTF-16 text as UTF-8)"
            )
        if line[0] not in ">@":
            raise InputError(
                f"{self._name}, line {self._line_number}: found {brief(line.strip())} before the "
                "first header; FASTA starts with '>', FASTQ with '@'"
            )

    def _check(self, record: Record, place: str) -> Record:
        if not record_id(record.header):
            raise InputError(
                f"{self._name}, {place}: the header has no id; write one after the '>' or '@'"
            )
        if "\0" in record.header:
            raise InputError(
                f"{self._name}, {place}: the header has a NUL byte; the file is damaged or not text"
            )
        # A letter beyond ASCII becomes `?`, which no alphabet has, and keeps its place.
        letters = record.sequence.encode("ascii", "replace")
        unusual = letters.translate(None, PLAIN_BYTES[self._alphabet])
        if not unusual:
            return record
        invalid = unusual.translate(None, VALID_BYTES[self._alphabet])
        if invalid:
            wrong = describe_letter(record, letters.index(invalid[:1]), self._alphabet)
            raise InputError(f"{self._name}, {place}: {wrong}")
        return self._read_unusual(record, unusual) if self._change_letters else record

    def _read_unusual(self, record: Record, unusual: bytes) -> Record:
        """Return the record as it is to be read, and note what is unusual about its letters."""
        if b"-" in unusual or b"." in unusual:
            self._findings["have", _GAPS] += 1
        sequence = record.sequence
        if self._alphabet == "dna":
            if b"U" in unusual or b"u" in unusual:
                self._findings["are", "RNA: U is read as T"] += 1
                # The models know no U: each would be an unknown base.
                sequence = sequence.translate(_RNA_TO_DNA)
        elif b"*" in unusual:
            # Gene finders write the stop codon after nearly every protein, so that needs no word.
            sequence = sequence.removesuffix("*")
            if "*" in sequence:
                self._findings["have", "* inside, which is read as an unknown residue"] += 1
        # Gaps and lower case are noted or normal, and stay as they are.
        if sequence == record.sequence:
            return record
        self.num_changed += 1
        return record._replace(sequence=sequence)


def check_beginnings(
    paths: Sequence[str | Path], alphabet: Alphabet, *, allow_empty: bool = False
) -> None:
    """Read the first record of each file, before something that takes long.

    Standard input and pipes can be read only once, and CRAM only as a whole, so they are left out.

    Raises:
        InputError: A file cannot be read, or its first record is broken.
    """
    for path in map(Path, paths):
        if str(path) == STDIN or (path.exists() and not path.is_file()):
            continue
        # A file that cannot be opened is explained by the reader below.
        with suppress(OSError), path.open("rb") as file:
            if file.read(4) == b"CRAM":
                continue
        # Most mistakes with files show at the first record: another format, or no file at all.
        next(iter(RecordReader(path, alphabet, allow_empty=allow_empty)), None)

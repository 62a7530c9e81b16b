"""Reading FASTQ of every shape, BAM and CRAM."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import sys
from pathlib import Path

import pysam
import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser
from Bio.SeqIO.QualityIO import FastqGeneralIterator

from virnucpro.errors import InputError
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.parsing import read_fasta
from virnucpro.sequences.records import Record

UNMAPPED, PAIR_1, PAIR_2, MAPPED, REVERSE = 0x4, 0x4D, 0x8D, 0x0, 0x14
LETTERS = "=ACMGRSVTWYHKDBN"[1:]


def make_fastq(num_records: int, seed: int, odd: str | None = None) -> bytes:
    """Return FASTQ of more than two blocks, in which one record is unusual."""
    rng = random.Random(seed)
    lines = []
    for number in range(num_records):
        letters = "".join(rng.choices("ACGTN", k=rng.randint(0, 400)))
        quality = "".join(rng.choices("!@+>I", k=len(letters)))
        record = f"@r{number} 1:N:0\n{letters}\n+\n{quality}\n"
        if number == num_records // 2 and odd is not None:
            record = {
                "lines": f"@r{number}\n{letters}AC\nGT\n+\n{quality}@@\n@@\n",
                "blank": record + "\n\n",
                "ids": f"@r{number} é\n{letters}\n+\n{quality}\n",
                "ends": record.replace("\n", "\r\n"),
                "spaces": f"@r{number} \n{letters}ACG  \n+\n{quality}@@@  \n",
                "long": f"@r{number}\n{'ACGT' * 100_000}\n+\n{'@' * 400_000}\n",
            }[odd]
        lines.append(record)
    return "".join(lines).encode()


@pytest.mark.parametrize("odd", [None, "lines", "blank", "ids", "ends", "spaces", "long"])
def test_fastq_is_read_as_biopython_reads_it(odd: str | None, tmp_path: Path) -> None:
    data = make_fastq(1_600, seed=1, odd=odd)
    assert len(data) > 3 * 131_072
    path = tmp_path / "reads.fastq"
    path.write_bytes(data)
    # Biopython wants text without blank lines.
    text = data.decode().replace("\r\n", "\n").replace("\n\n\n", "\n")
    parsed = FastqGeneralIterator(io.StringIO(text))
    assert list(RecordReader(path, "dna")) == [Record(*words[:2]) for words in parsed]


def test_fasta_is_read_as_biopython_reads_it() -> None:
    rng = random.Random(4)
    parts = ["ACGT", "nn", " ", "\t\n", "\n", "\n\n", "\n>a", "\n> b c", "\n>"]
    for _ in range(200):
        text = ">" + "".join(rng.choices(parts, k=rng.randint(0, 30)))
        parsed = SimpleFastaParser(io.StringIO(text))
        assert list(read_fasta(io.StringIO(text))) == list(parsed)


def test_a_bad_letter_far_into_fastq_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "reads.fastq"
    path.write_bytes(make_fastq(1_600, seed=2) + b"@bad\nACJT\n+\nIIII\n@c\nA\n+\nI\n")
    with pytest.raises(InputError, match=r"line 6401: record 'bad' has 'J' at position 3"):
        list(RecordReader(path, "dna"))


def test_fasta_behind_many_reads_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reads.fastq"
    path.write_bytes(make_fastq(1_600, seed=3) + b">a\nACGT\n")
    with pytest.raises(
        InputError, match=r"line 6401: the FASTQ record that starts here is damaged"
    ):
        list(RecordReader(path, "dna"))


# BAM and CRAM


def write_reads(path: Path, reads: list[tuple[int, str, str]], **options: str) -> Path:
    header = {"HD": {"VN": "1.6"}, "SQ": [{"SN": "host", "LN": 2_000}]}
    mode = "wc" if path.suffix == ".cram" else "wb"
    with pysam.AlignmentFile(str(path), mode, header=header, **options) as file:
        for flag, name, letters in reads:
            read = pysam.AlignedSegment(file.header)
            read.query_name, read.flag, read.query_sequence = name, flag, letters
            read.set_tag("XX", "text behind the qualities")
            if not flag & UNMAPPED:
                read.reference_id, read.reference_start = 0, 9
                read.cigarstring = f"{len(letters)}M"
            file.write(read)
    return path


READS = [
    (UNMAPPED, "one", "ACGTN"),
    (MAPPED, "host", "ACGT"),
    (PAIR_1, "pair", "AACC"),
    (PAIR_2, "pair", "G"),
    (0x904, "again", "TTTT"),
    (REVERSE, "back", "AACGR"),
    (UNMAPPED, "letters", LETTERS),
    (UNMAPPED, "none", ""),
]
UNMAPPED_RECORDS = [
    Record("one", "ACGTN"),
    Record("pair", "AACC"),
    Record("pair", "G"),
    Record("back", "YCGTT"),
    Record("letters", LETTERS),
    Record("none", ""),
]


def test_the_unmapped_reads_of_bam_are_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_reads(tmp_path / "reads.bam", READS)
    data = path.read_bytes()
    reader = RecordReader(path, "dna")
    assert list(reader) == UNMAPPED_RECORDS
    assert reader.sha256 == hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert list(RecordReader("-", "dna")) == UNMAPPED_RECORDS


def test_bam_without_unmapped_reads_says_what_is_wanted(tmp_path: Path) -> None:
    path = write_reads(tmp_path / "reads.bam", [(MAPPED, "host", "ACGT")])
    with pytest.raises(
        InputError, match=r"holds no unmapped reads, .* `samtools fasta` writes all"
    ):
        list(RecordReader(path, "dna"))
    assert list(RecordReader(path, "dna", allow_empty=True)) == []


@pytest.mark.slow
def test_damaged_bam_is_refused_or_read(tmp_path: Path) -> None:
    data = gzip.decompress(write_reads(tmp_path / "reads.bam", READS).read_bytes())
    path = tmp_path / "damaged.bam"
    rng = random.Random(4)
    cut = [data[:size] for size in range(4, len(data), 7)]
    changed = [bytearray(data) for _ in range(500)]
    for one in changed:
        for _ in range(rng.randint(1, 3)):
            one[rng.randrange(4, len(data))] = rng.choice([0, 127, 255, rng.randrange(256)])
    num_refused = 0
    for one in [*cut, *changed]:
        path.write_bytes(one)
        try:
            list(RecordReader(path, "dna"))
        except InputError:
            num_refused += 1
    assert num_refused > len(cut) // 2


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (-32, b"\1\0\0\0"),  # its reference is the second of one
        (-8 - 4, b"\xfe\xff\xff\xff"),  # the mate's reference is -2
        (-16, b"\xff\xff\xff\xff"),  # the number of letters is -1
        (-16, b"\x40\0\0\0"),  # more letters than it has room for
        (0, b"\xff"),  # the name is no text
        (3, b"x"),  # the name has no end
    ],
)
def test_bam_that_contradicts_itself_is_refused(tmp_path: Path, place: int, value: bytes) -> None:
    path = write_reads(tmp_path / "reads.bam", READS)
    data = bytearray(gzip.decompress(path.read_bytes()))
    start = data.index(b"one\0") + place
    data[start : start + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"after unmapped read 0 \(a read contradicts"):
        list(RecordReader(path, "dna"))


def test_the_unmapped_reads_of_cram_are_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = tmp_path / "host.fa"
    reference.write_text(f">host\n{'ACGTACGTAC' * 200}\n")
    path = write_reads(tmp_path / "a.cram", READS, reference_filename=str(reference))
    monkeypatch.setenv("REF_CACHE", str(tmp_path / "cache"))
    reader = RecordReader(path, "dna")
    assert list(reader) == UNMAPPED_RECORDS
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read as CRAM"):
        list(RecordReader(path, "dna"))


def test_cram_without_pysam_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_reads(tmp_path / "a.cram", READS[:1])
    monkeypatch.setitem(sys.modules, "pysam", None)
    with pytest.raises(InputError, match=r"pip install 'virnucpro\[cram\]'"):
        list(RecordReader(path, "dna"))


def test_cram_needs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_reads(tmp_path / "a.cram", READS[:1]).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(InputError, match="from a file only"):
        list(RecordReader("-", "dna"))

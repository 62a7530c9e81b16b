"""Reading every kind of sequence file, and refusing every kind of bad one."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from xopen import xopen

from tests.sequences.test_gunzip import BGZIP_END, make_bgzip
from virnucpro.backend.interface import Alphabet
from virnucpro.errors import InputError
from virnucpro.sequences import fasta
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.records import Record

TAR = b"contigs.fa".ljust(257, b"\0") + b"ustar\0" + b"\0" * 249
FASTA = b">a first\nACGT\nacgt\n>b\nNNN\n"
FASTQ = b"@a first\nACGTacgt\n+\nIIIIIIII\n@b\nNNN\n+b\n@@@\n"
RECORDS = [Record("a first", "ACGTacgt"), Record("b", "NNN")]

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_input(data: bytes) -> Path:
        path = tmp_path / "input"
        path.write_bytes(data)
        return path

    return write_input


def compress_zstd(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with xopen(buffer, "wb", format="zst", threads=0) as file:
        file.write(data)
    return buffer.getvalue()


COMPRESSORS = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": compress_zstd,
}


@pytest.mark.parametrize("text", [FASTA, FASTQ], ids=["fasta", "fastq"])
@pytest.mark.parametrize("compression", COMPRESSORS)
def test_content_tells_format_and_compression(text: bytes, compression: str, write: Write) -> None:
    data = COMPRESSORS[compression](text)
    reader = RecordReader(write(data), "dna")
    assert list(reader) == RECORDS
    assert reader.sha256 == hashlib.sha256(data).hexdigest()
    assert (reader.num_bytes, reader.num_records) == (len(data), 2)


def test_a_misleading_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "input.gz"
    path.write_bytes(FASTA)
    assert list(RecordReader(path, "dna")) == RECORDS


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_standard_input(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = COMPRESSORS[compression](FASTA)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    reader = RecordReader("-", "dna")
    assert list(reader) == RECORDS
    assert reader.sha256 == hashlib.sha256(data).hexdigest()


def test_files_joined_after_compression(write: Write) -> None:
    data = gzip.compress(b">a first\nACGT\n") + gzip.compress(b"acgt\n>b\nNNN\n")
    reader = RecordReader(write(data), "dna")
    assert list(reader) == RECORDS
    assert reader.num_bytes == len(data)


@pytest.mark.parametrize(
    "text",
    [
        FASTA.replace(b"\n", b"\r\n"),
        FASTQ.replace(b"\n", b"\r\n"),
        FASTA.replace(b"\n", b"\r"),
        b"\n \n" + FASTA.replace(b"\n", b"\n\n"),
        FASTA.rstrip(),
        FASTQ.rstrip(),
        b"\xef\xbb\xbf" + FASTA,
        FASTQ + b"\n\n",
    ],
    ids=["crlf", "crlf-fastq", "cr", "blank-lines", "cut", "cut-fastq", "bom", "end-fastq"],
)
def test_unusual_line_endings(text: bytes, write: Write) -> None:
    assert list(RecordReader(write(text), "dna")) == RECORDS


def test_empty_records_are_records(write: Write) -> None:
    assert list(RecordReader(write(b">a\n>b\n\n>c"), "dna")) == [
        Record("a", ""),
        Record("b", ""),
        Record("c", ""),
    ]
    assert list(RecordReader(write(b"@a\n\n+\n\n@b\nA\n+\nI\n"), "dna")) == [
        Record("a", ""),
        Record("b", "A"),
    ]


def test_any_bytes_of_a_header_come_back(write: Write) -> None:
    header = "é|x=1;\t→".encode() + b" \xff\xfe latin \xe9"
    (record,) = RecordReader(write(b">" + header + b"\nACGT\n"), "dna")
    assert record.header.encode("utf-8", "surrogateescape") == header
    assert record.id == "é|x=1;"


def test_a_header_line_of_a_megabyte(write: Write) -> None:
    header = "id " + "x" * (1 << 20)
    assert list(RecordReader(write(f">{header}\nACGT\n".encode()), "dna")) == [
        Record(header, "ACGT")
    ]


@pytest.mark.parametrize("alphabet", ["dna", "protein"])
def test_letters_of_each_alphabet(alphabet: Alphabet, write: Write) -> None:
    letters = {"dna": "ACGTRYSWKMBDHVNX-.", "protein": "*ACDEFGHIKLMNPQRSTVWYBXZUOJ-."}[alphabet]
    (record,) = RecordReader(write(f">a\n{letters}{letters.lower()}\n".encode()), alphabet)
    assert record.sequence == letters + letters.lower()


RNA = b">a\nACGU\n>b\nacgt\n>c\nacguuN\n"


def test_rna_is_read_as_dna_and_said_once(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(RNA)
    reader = RecordReader(path, "dna")
    assert [record.sequence for record in reader] == ["ACGT", "acgt", "acgttN"]
    assert reader.num_changed == 2
    assert reader.sha256 == hashlib.sha256(RNA).hexdigest()
    assert caplog.messages == [f"{path}: 2 of 3 records are RNA: U is read as T"]


def test_the_u_of_a_protein_stays(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    (record,) = RecordReader(write(b">a\nMUK\n"), "protein")
    assert record.sequence == "MUK"
    assert not caplog.messages


def test_a_stop_at_the_end_of_a_protein_is_left_off(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(b">a\nMKT*\n>b\nM*KT\n>c\n*\n>d\nMK**\n>e\nMK\n")
    reader = RecordReader(path, "protein")
    assert [record.sequence for record in reader] == ["MKT", "M*KT", "", "MK*", "MK"]
    assert reader.num_changed == 3
    assert caplog.messages == [
        f"{path}: 2 of 5 records have * inside, which is read as an unknown residue"
    ]


DNA = "ACGTTGCATTGACCANNN"
PROTEIN = "MSKTAYDRSVKTWHYAGMKNDSVHGR"
"""Only letters that also stand for bases."""


@pytest.mark.parametrize(
    ("alphabet", "sequence", "found"),
    [
        ("protein", DNA * 3, "looks like DNA, and the backend reads proteins: 100 %"),
        ("protein", DNA.replace("T", "U").lower() * 800, "looks like DNA"),
        ("dna", PROTEIN, "looks like proteins, and the backend reads DNA"),
    ],
)
def test_the_other_alphabet_is_refused(
    alphabet: Alphabet, sequence: str, found: str, write: Write
) -> None:
    path = write(f">a\n{sequence}\n>b\n{sequence}\n".encode())
    assert len(list(RecordReader(path, alphabet))) == 2
    with pytest.raises(InputError, match=f"{found}.*--force-alphabet"):
        list(RecordReader(path, alphabet, judge_alphabet=True))


@pytest.mark.parametrize(
    ("alphabet", "sequence"),
    [
        ("protein", PROTEIN),
        ("protein", "GAGAGSGAGAGSGAGAGY" * 9),
        ("protein", "ACGT"),
        ("dna", DNA * 99),
        ("dna", "N" * 99),
        ("dna", "RYSWACGTACGT" * 9),
    ],
)
def test_the_right_alphabet_is_not_refused(alphabet: Alphabet, sequence: str, write: Write) -> None:
    path = write(f">a\n{sequence}\n".encode())
    assert len(list(RecordReader(path, alphabet, judge_alphabet=True))) == 1


def test_sequences_for_another_program_keep_their_letters(write: Write) -> None:
    reader = RecordReader(write(RNA), "dna", change_letters=False)
    assert [record.sequence for record in reader] == ["ACGU", "acgt", "acguuN"]


def test_gaps_are_counted(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(RecordReader(write(b">a\nAC-T\n>b\nACGT\n>c\nAC.U\n"), "dna"))) == 3
    assert "2 of 3 records have gaps (- or .)" in caplog.messages[0]
    assert "1 of 3 records is RNA" in caplog.messages[1]


@pytest.mark.parametrize("form", [">r{}\n{}\n", "@r{}\n{}\n+\n{}\n"], ids=["fasta", "fastq"])
def test_poly_g_at_the_end_is_warned_of(
    write: Write, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    reads = ["ACGT" + 20 * "G", 19 * "G", "ACGT", 30 * "G", "ACGT" + 40 * "G" + "A"]
    lines = [form.format(number, read, len(read) * "I") for number, read in enumerate(reads)]
    path = write("".join(lines).encode())
    assert [record.sequence for record in RecordReader(path, "dna")] == reads
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: 2 of 5 records end in 20 or more G, as errors of some")
    caplog.clear()
    list(RecordReader(path, "protein"))
    assert not caplog.messages


BAD_INPUTS = {
    "empty": (b"", "holds no records"),
    "blank": (b"\n\n  \n", "holds no records"),
    "empty gz": (gzip.compress(b""), "holds no records"),
    "cut gz": (gzip.compress(FASTA * 9)[:-12], "damaged or was cut off"),
    "cut bz2": (bz2.compress(FASTA)[:-5], "damaged or was cut off"),
    "cut xz": (lzma.compress(FASTA)[:-5], "damaged or was cut off"),
    "cut zst": (compress_zstd(FASTA)[:-3], "damaged or was cut off"),
    "changed gz": (gzip.compress(FASTA)[:-8] + b"\0" * 8, "damaged or was cut off"),
    "binary": (b"\x7fELF\x02\x01\0\0\0\0", "binary or UTF-16"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0\0\0", "FASTA or FASTQ was expected, and this is an HDF5 file"),
    "tar.gz": (gzip.compress(TAR), "this is a tar archive; unpack it, and give a file in it"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "sam": (b"@SQ\tSN:a\tLN:9\nr1\t4\t*\n", "this is a SAM file; `samtools fasta`"),
    "utf-16": (FASTA.decode().encode("utf-16"), "binary or UTF-16"),
    "utf-16 without mark": (FASTA.decode().encode("utf-16-le"), "binary or UTF-16"),
    "binary without NUL": (b"\x89PNG\r\n\x1a\n", "binary or UTF-16"),
    "NUL in a header": (b">a\nA\n>b \0\nA\n", "line 3: the header has a NUL byte"),
    "text first": (b"\nACGT\n>a\nACGT\n", "line 2: found 'ACGT' before the first header"),
    "no id": (b">a\nACGT\n>\nACGT\n", "line 3: the header has no id"),
    "blank id": (b"@ \nACGT\n+\nIIII\n", "line 1: the header has no id"),
    "short quality": (b"@a\nA\n+\nI\n@b\nACGT\n+\nIII\n@c\nA\n+\nI\n", "line 5: .* is damaged"),
    "long quality": (b"@a\nACGT\n+\nIIIII\n", "line 1: .* is damaged"),
    "no quality": (b"@a\nA\n+\nI\n@b\nACGT\n", "line 5: .* is damaged"),
    "cut FASTQ": (b"@a\nA\n+\nI\n@b\nACGT\n+\n", "line 5: .* is damaged"),
    "FASTA in FASTQ": (b"@a\nA\n+\nI\n>b\nACGT\n", "line 5: .* is damaged"),
    "FASTQ in FASTA": (b">a\nA\n@b\nACGT\n+\nIIII\n", "line 1: record 'a' has '@'"),
    "protein": (b">a\nACGT\n>p x\nMK\nTAYIE\n", "line 3: record 'p' has 'I' .*esm2"),
    "stop": (b">p\nMKTA*\n", r"'\*' at position 5.*esm2"),
    "digits": (
        b">a\n1 ACGT\n",
        "has '1' at position 1, which is not a nucleotide letter; remove it, or write N",
    ),
    "not ascii": (">a\nACéGT\n".encode(), "has 'é' at position 3"),
    "not text": (b">a\nAC\xff\n", r"has '\\udcff' at position 3"),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_is_explained(kind: str, write: Write) -> None:
    data, message = BAD_INPUTS[kind]
    path = write(data)
    with pytest.raises(InputError, match=message) as caught:
        list(RecordReader(path, "dna"))
    assert str(caught.value).startswith(str(path))


def test_what_follows_gzip_is_counted(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(gzip.compress(FASTA) + b"24 bytes of another kind")
    assert list(RecordReader(path, "dna")) == RECORDS
    assert f"{path}: 24 bytes after the compressed data are no gzip" in caplog.text


def test_a_bgzip_file_without_its_end(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    packed = make_bgzip(FASTA)
    assert list(RecordReader(write(packed), "dna")) == RECORDS
    assert not caplog.messages
    assert list(RecordReader(write(packed[: -len(BGZIP_END)]), "dna")) == RECORDS
    assert "the empty block that ends a bgzip file is missing" in caplog.text


def test_proteins_are_checked_too(write: Write) -> None:
    with pytest.raises(InputError, match="has '1' at position 4, which is not an amino acid"):
        list(RecordReader(write(b">p\nMKT1\n"), "protein"))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.fa: cannot be opened \(No such file"):
        list(RecordReader(tmp_path / "nowhere.fa", "dna"))
    with pytest.raises(InputError, match=r"cannot be opened \(Is a directory"):
        list(RecordReader(tmp_path, "dna"))


def test_records_before_a_fault_are_read(write: Write) -> None:
    records = iter(RecordReader(write(FASTA + b">c\nACGT!\n"), "dna"))
    assert [next(records), next(records)] == RECORDS
    with pytest.raises(InputError, match="line 6"):
        next(records)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (">a\nACGT\n>b\n" + "A" * 8000 + "\n>c\n", 3),
        (">a\nACGT\n>b\n" + "AC\n" * 200, 3),
        # The record before it is not known to be whole yet.
        (">a\nACGT\n>" + "b" * 8000 + "\nA\n", 1),
        ("\n" * 200, 1),
        ("@a\nA\n+\nI\n@b\n" + "A" * 4000 + "\n+\n" + "I" * 4000 + "\n", 5),
    ],
    ids=["line", "lines", "header", "nothing", "FASTQ"],
)
def test_memory_is_bounded_in_one_record(tmp_path, monkeypatch, text, line):
    monkeypatch.setattr(fasta, "_MAX_RECORD_BYTES", 5000)
    monkeypatch.setattr(fasta, "_MAX_FASTQ_BYTES", 1000)
    monkeypatch.setattr(fasta, "_BLOCK_BYTES", 100)
    path = tmp_path / "a.fa.bz2"
    path.write_bytes(bz2.compress(text.encode()))
    with pytest.raises(InputError, match=rf"bz2, line {line}: the record .* than 5,000 letters"):
        list(RecordReader(path, "dna"))


def test_many_records_may_be_longer_together(tmp_path, monkeypatch):
    monkeypatch.setattr(fasta, "_MAX_RECORD_BYTES", 5000)
    monkeypatch.setattr(fasta, "_BLOCK_BYTES", 100)
    path = tmp_path / "a.fa"
    path.write_text(40 * (">a\n" + "A" * 150 + "\n>b\nAC\n"))
    assert [len(record.sequence) for record in RecordReader(path, "dna")] == [150, 2] * 40


def test_a_file_without_an_end_or_a_line_is_refused_at_once():
    with pytest.raises(InputError, match="is binary or UTF-16"):
        list(RecordReader("/dev/zero", "dna"))

"""`virnucpro frames`: its table, its pipes and its errors.

tests/sequences/test_frames.py compares the frames themselves with a plain implementation.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from virnucpro.cli.main import main


@pytest.fixture
def fasta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Stand in a directory that holds input.fa; return what is in it."""
    monkeypatch.chdir(tmp_path)
    text = b">a\xff x\nGCTGCTGCTGC\n>closed\nCTAGCTAGCTAG\n>b\nacgtt\n"
    Path("input.fa").write_bytes(text)
    return text


TABLE = (
    b"frame_id\tdna\tprotein\n"
    b"a\xff_chunk_1F1\tGCTGCTGCTG\tAAA\n"
    b"a\xff_chunk_1F2\tCTGCTGCTGC\tLLL\n"
    b"a\xff_chunk_1F3\tTGCTGCTGC\tCCC\n"
    b"a\xff_chunk_1R1\tGCAGCAGCAG\tAAA\n"
    b"a\xff_chunk_1R2\tCAGCAGCAGC\tQQQ\n"
    b"a\xff_chunk_1R3\tAGCAGCAGC\tSSS\n"
    b"b_chunk_1F1\tACGT\tT\n"
    b"b_chunk_1F2\tCGTT\tR\n"
    b"b_chunk_1F3\tGTT\tV\n"
    b"b_chunk_1R1\tAACG\tN\n"
    b"b_chunk_1R2\tACGT\tT\n"
    b"b_chunk_1R3\tCGT\tR\n"
)


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["frames", *arguments], input=stdin)


def test_the_command_writes_a_table(fasta: bytes) -> None:
    assert run("input.fa", "-e", "300", "-o", "frames.tsv").exit_code == 0
    assert Path("frames.tsv").read_bytes() == TABLE
    assert sorted(path.name for path in Path().iterdir()) == ["frames.tsv", "input.fa"]


def test_an_existing_file_is_overwritten_only_if_asked(fasta: bytes) -> None:
    Path("frames.tsv").write_text("mine")
    result = run("input.fa", "-e", "300", "-o", "frames.tsv")
    assert result.exit_code == 2
    assert "frames.tsv: exists already; overwrite it with --force" in result.stderr
    assert Path("frames.tsv").read_text() == "mine"
    assert run("input.fa", "-e", "300", "-o", "frames.tsv", "--force").exit_code == 0
    assert Path("frames.tsv").read_bytes() == TABLE


def test_rna_gives_the_table_of_its_dna(fasta: bytes) -> None:
    Path("rna.fa").write_bytes(fasta.replace(b"T", b"U").replace(b"t", b"u"))
    result = run("rna.fa", "-e", "300", "-o", "frames.tsv")
    assert Path("frames.tsv").read_bytes() == TABLE
    assert result.stderr.count("3 of 3 records are RNA: U is read as T") == 1


STRETCHES = (
    b"frame_id\tdna\tprotein\n"
    b"a\xff_chunk_1F1_1-3\tGCTGCTGCTGC\tAAA\n"
    b"closed_chunk_1F1_1-3\tCTAGCTAGCTAG\tLAS\n"
)


def test_the_command_follows_the_frame_rule(fasta: bytes) -> None:
    assert run("input.fa", "--frame-rule", "stretches:1:2").stdout_bytes == STRETCHES
    assert run("input.fa", "--frame-rule", "open:code=1").stdout_bytes == TABLE
    # TAG is leucine in this code.
    table = run("input.fa", "--frame-rule", "open:code=16").stdout_bytes
    assert b"\nclosed_chunk_1F1\tCTAGCTAGCTAG\tLASL\n" in table


def test_the_command_reads_and_writes_pipes(fasta: bytes) -> None:
    assert run("-", stdin=fasta).stdout_bytes == TABLE
    for _ in range(2):
        assert run("input.fa", "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nowhere.fa", "-o", "frames.tsv"], 1, "nowhere.fa: cannot be opened"),
        (["input.fa", "-o", "nowhere/frames.tsv"], 1, "nowhere/frames.tsv: cannot be written"),
        (["input.fa", "-o", "."], 1, ".: cannot be written (Is a directory)"),
        (["input.fa", "-o", "./input.fa"], 2, "./input.fa: is the input"),
        ([], 2, "Missing argument 'INPUT...'"),
        (["input.fa", "--frame-rule", "open:code=7"], 2, "genetic code 7: "),
        (["input.fa", "--frame-rule", "both"], 2, "frame rule 'both': wanted open, stretches"),
        (["input.fa", "-e", "2"], 2, "--chunk-length-bp 2: wanted a whole number, at least 3"),
    ],
)
def test_the_command_explains_what_is_wrong(
    arguments: list[str], exit_code: int, message: str, fasta: bytes
) -> None:
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (exit_code, True)
    assert [path.name for path in Path().iterdir()] == ["input.fa"]
    assert Path("input.fa").read_bytes() == fasta

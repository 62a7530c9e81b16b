"""What a file is that somebody took for another."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path

import h5py
import pytest

from virnucpro.backend.contents import HEAD_BYTES, identify

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"


def make_tar(path: Path) -> bytes:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "contigs.fa")
    return path.read_bytes()


def make_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(__file__, "contigs.fa")
    return path.read_bytes()


def make_hdf5(path: Path) -> bytes:
    h5py.File(path, "w").close()
    return path.read_bytes()


def make_gzip(_: Path) -> bytes:
    return gzip.compress(b">a\nACGT\n")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_tar, "a tar archive; unpack it"),
        (make_zip, "a zip archive; unpack it"),
        (make_hdf5, "an HDF5 file"),
        (make_gzip, "a compressed file; decompress it"),
    ],
)
def test_real_files(make, words, tmp_path):
    assert words in identify(make(tmp_path / "file")[:HEAD_BYTES])


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (POINTER, "a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html lang=en>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (b"@SQ\tSN:chr1\tLN:100\n", "samtools fasta"),
        (b"H\tVN:Z:1.0\nS\tedge_1\tACGT\n", "gfatools gfa2fa"),
        (b"S\ts1.utg000001l\tACGT\tLN:i:4\n", "gfatools gfa2fa"),
        (b"LOCUS       NC_001416              48502 bp    DNA", "GenBank"),
        (b"##gff-version 3\n", "a table of features; give the FASTA file"),
    ],
)
def test_first_bytes(head, words):
    assert words in identify(head)


@pytest.mark.parametrize(
    "head", [b"", b">a\nACGT\n", b"@a\nACGT\n+\nIIII\n", b"@SQ1\nACGT\n", b"{}"]
)
def test_what_is_unknown_or_right_has_no_name(head):
    assert identify(head) is None

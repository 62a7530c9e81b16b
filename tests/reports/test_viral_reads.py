"""viral.fastq: the right reads of several files, as they are there."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from virnucpro.errors import InputError
from virnucpro.reports.viral_reads import write_viral_fastq
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store


def fastq(name: str, mate: int) -> str:
    return f"@{name}/{mate} of a run\nacgUNNACGTACGT{'A' * mate}\n+\n{'I#' * 7}{'!' * mate}\n"


NAMES = ("a", "b", "c")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "reads_1.fq.gz", tmp_path / "reads_2.fq"]
    paths[0].write_bytes(gzip.compress("".join(fastq(name, 1) for name in NAMES).encode()))
    paths[1].write_text("".join(fastq(name, 2) for name in NAMES))
    return paths


def write(tmp_path: Path, files: list[Path], is_viral: list[bool], *, paired: bool = False) -> str:
    store = build_frame_store(
        [str(path) for path in files], tmp_path / "store", StoreSettings(12, paired=paired)
    )
    write_viral_fastq(tmp_path / "viral.fastq", store, np.array(is_viral))
    return (tmp_path / "viral.fastq").read_text()


def test_mates_follow_each_other(tmp_path: Path, files: list[Path]) -> None:
    text = write(tmp_path, files, [True, False, True], paired=True)
    assert text == "".join(fastq(name, mate) for name in ("a", "c") for mate in (1, 2))


def test_mates_of_one_file(tmp_path: Path, files: list[Path]) -> None:
    files[1].write_text("".join(fastq(name, mate) for name in NAMES for mate in (1, 2)))
    text = write(tmp_path, files[1:], [False, True, False], paired=True)
    assert text == fastq("b", 1) + fastq("b", 2)


def test_files_of_single_reads(tmp_path: Path, files: list[Path], caplog) -> None:
    fasta = tmp_path / "more.fa"
    fasta.write_text(">x\nACGTACGT\n>y\nACGTACGTA\n")
    files.insert(1, fasta)
    text = write(tmp_path, files, [False, False, True, True, True, True, False, False])
    assert text == fastq("c", 1) + fastq("a", 2)
    assert f"{fasta}: is not FASTQ, so viral.fastq has none of its records" in caplog.text


def test_a_file_that_has_lost_reads(tmp_path: Path, files: list[Path]) -> None:
    write(tmp_path, files[1:], [True, False, False])
    files[1].write_text(fastq("a", 2))
    store = build_frame_store([str(files[0])], tmp_path / "other", StoreSettings(12))
    store.inputs[0]["path"] = str(files[1])
    with pytest.raises(InputError, match="has other reads than in the run"):
        write_viral_fastq(tmp_path / "new.fastq", store, np.array([False] * 3))
    assert not (tmp_path / "new.fastq").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is not there any more, .*call --no-fastq"), ("@a\nACGT", "damaged FASTQ")],
)
def test_a_file_that_is_gone_or_broken(
    tmp_path: Path, files: list[Path], content: str | None, reason: str
) -> None:
    store = build_frame_store([str(files[1])], tmp_path / "store", StoreSettings(12))
    files[1].unlink()
    if content is not None:
        files[1].write_text(content)
    with pytest.raises(InputError, match=reason):
        write_viral_fastq(tmp_path / "new.fastq", store, np.array([True] * 3))

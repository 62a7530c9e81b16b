from __future__ import annotations

import gzip
import math
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from virnucpro.errors import InputError, OutputError
from virnucpro.reports.tables import (
    parse_count,
    parse_share,
    read_table,
    write_fasta,
    write_highest_scores,
    write_prediction_results,
    write_records,
)
from virnucpro.scoring.calls import ChunkCalls
from virnucpro.sequences.records import Record

F32 = np.float32
LEGACY = (
    Path(__file__).resolve().parents[2]
    / "../shared/legacy/test_with_orfs_refactored/test_with_orfs_merged"
)
needs_legacy = pytest.mark.skipif(not LEGACY.is_dir(), reason="no files of the fork here")


def read_lines(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


@needs_legacy
def test_predictions_are_the_forks_byte_for_byte(tmp_path: Path) -> None:
    theirs = LEGACY / "prediction_results.txt"
    rows = read_lines(theirs)[1:]
    scores = np.array([row[2:] for row in rows], F32)
    ours = tmp_path / "prediction_results.txt"
    write_prediction_results(ours, (row[0] for row in rows), scores)
    assert ours.read_bytes() == theirs.read_bytes()


def make_chunks(is_open, max_others, max_virus) -> ChunkCalls:
    counts = np.array(is_open, np.int64)
    maxima = np.array(max_others, F32), np.array(max_virus, F32)
    return ChunkCalls(np.array(is_open), counts, counts - counts, *maxima)


@needs_legacy
def test_highest_scores_are_the_forks_as_float32(tmp_path: Path) -> None:
    theirs = LEGACY / "prediction_results_highestscore.csv"
    rows = read_lines(theirs)[1:]
    maxima = np.array([row[2:] for row in rows], F32)
    ours = tmp_path / "highest.csv"
    write_highest_scores(ours, [row[0] for row in rows], make_chunks([True] * len(rows), *maxima.T))
    assert [row[:2] for row in read_lines(ours)] == [row[:2] for row in read_lines(theirs)]
    assert read_lines(ours)[0] == read_lines(theirs)[0]
    ours_read = np.array([row[2:] for row in read_lines(ours)[1:]], F32)
    np.testing.assert_array_equal(ours_read, maxima)


def test_predictions_read_back_to_the_same_float32(tmp_path: Path) -> None:
    virus = np.random.default_rng(0).random(70_000, F32)
    virus[:4] = [0, 1, 1e-30, 0.1]
    scores = np.stack([1 - virus, virus], axis=1)
    write_prediction_results(tmp_path / "p.txt", map(str, range(len(virus))), scores)
    rows = read_lines(tmp_path / "p.txt")
    assert rows[0] == ["Sequence_ID", "Prediction", "score1", "score2"]
    assert [row[0] for row in rows[1:]] == [str(row) for row in range(len(virus))]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows[1:]], F32), scores)
    np.testing.assert_array_equal([row[1] == "virus" for row in rows[1:]], virus > 1 - virus)


def test_prediction_of_a_tie_is_others(tmp_path: Path) -> None:
    write_prediction_results(tmp_path / "p.txt", ["a"], np.array([[0.5, 0.5]], F32))
    assert read_lines(tmp_path / "p.txt")[1] == ["a", "others", "0.5", "0.5"]


def test_chunks_without_frames_are_left_out_and_duplicates_kept(tmp_path: Path) -> None:
    nan = np.nan
    write_highest_scores(
        tmp_path / "h.csv",
        ["a_chunk_1", "a_chunk_2", "a_chunk_1"],
        make_chunks([True, False, True], [0.25, nan, 0.5], [0.75, nan, 0.25]),
    )
    assert (tmp_path / "h.csv").read_text() == (
        "Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\n"
        "a_chunk_1\tTrue\t0.25\t0.75\n"
        "a_chunk_1\tFalse\t0.5\t0.25\n"
    )


def test_every_record_has_a_line(tmp_path: Path) -> None:
    write_records(
        tmp_path / "records.tsv",
        ["contig", "read", "read"],
        length=np.array([1000, 2, 90]),
        num_chunks=np.array([2, 0, 1]),
        num_open_chunks=np.array([1, 0, 1]),
        num_frames=np.array([3, 0, 1]),
        num_viral_chunks=np.array([1, 0, 0]),
        score=np.array([0.1 + 0.2, np.nan, 0.25]),
        call=np.array(["virus", "none", "others"], object),
        reason=np.array(["-", "too_short", "-"], object),
        probability=np.array([0.125, np.nan, np.nan]),
        scored_share=np.array([0.5, np.nan, 1.0]),
        confidence=np.array(["low", "-", "-"], object),
        judged_by=np.array(["classifier", "-", "screen"], object),
    )
    assert (tmp_path / "records.tsv").read_text() == (
        "record_id\tlength\tnum_chunks\tnum_open_chunks\tnum_frames\tnum_viral_chunks"
        "\tscore\tcall\treason\tprobability\tscored_share\tconfidence\tjudged_by\n"
        "contig\t1000\t2\t1\t3\t1\t0.30000000000000004\tvirus\t-\t0.125\t0.5\tlow\tclassifier\n"
        "read\t2\t0\t0\t0\t0\tNA\tnone\ttoo_short\tNA\tNA\t-\t-\n"
        "read\t90\t1\t1\t1\t0\t0.25\tothers\t-\tNA\t1.0\t-\tscreen\n"
    )


def test_viral_fasta_keeps_headers_and_letters(tmp_path: Path) -> None:
    header = b"r\xe9ad|1 \xc3\xa9t\xe9  two".decode("utf-8", "surrogateescape")
    records = [Record(header, "acgtN" * 33), Record("b", "ACG" * 80)]
    write_fasta(tmp_path / "viral.fasta", iter(records))
    written = (tmp_path / "viral.fasta").read_bytes()
    assert written.startswith(b">r\xe9ad|1 \xc3\xa9t\xe9  two\nacgtN")
    lines = written.split(b"\n")
    assert [len(line) for line in lines[1:4]] == [80, 80, 5]
    assert lines[4:] == [b">b", *[(b"ACG" * 80)[i : i + 80] for i in (0, 80, 160)], b""]


def test_ids_with_undecodable_bytes_come_out_as_they_went_in(tmp_path: Path) -> None:
    write_prediction_results(
        tmp_path / "p.txt", [b"\xff\xe9".decode("utf-8", "surrogateescape")], np.ones((1, 2), F32)
    )
    assert b"\n\xff\xe9\tothers\t1.0\t1.0\n" in (tmp_path / "p.txt").read_bytes()


def test_an_error_midway_leaves_the_old_file_and_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "viral.fasta"
    path.write_text("old")

    def failing() -> Iterator[Record]:
        yield Record("a", "ACGT")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_fasta(path, failing())
    assert [file.name for file in tmp_path.iterdir()] == ["viral.fasta"]
    assert path.read_text() == "old"


def test_a_missing_id_is_an_error_not_a_shorter_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_prediction_results(tmp_path / "p.txt", ["a"], np.ones((2, 2), F32))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    scores = np.ones((100_000, 2), F32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow over this size, which fails within write() as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match=r"p\.txt: cannot be written \(File too large\)"):
            write_prediction_results(tmp_path / "p.txt", map(str, range(len(scores))), scores)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


# Reading


def read_text(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    path.write_text(text)
    return list(read_table(path, ("id", "label"), ("group",)))


def test_columns_are_found_by_name_and_lines_are_numbered(tmp_path: Path) -> None:
    found = read_text(tmp_path / "t.tsv", 'x\tlabel\tid\n1\t"a\tb"\n2\t\tc\n')
    assert found == [(2, {"id": 'b"', "label": '"a'}), (3, {"id": "c", "label": ""})]


def test_optional_columns_are_read_where_they_are(tmp_path: Path) -> None:
    assert read_text(tmp_path / "t.tsv", "id\tlabel\tgroup\na\tb\tc\n") == [
        (2, {"id": "a", "label": "b", "group": "c"})
    ]


@pytest.mark.parametrize("word", ["", "x", "-1", "1.0", "1_0", "٣", f"{1 << 63}", "9" * 5000])
def test_what_is_no_count_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="wanted a whole number of at least 0"):
        parse_count(word)


@pytest.mark.parametrize("word", ["", "x", "nan", "inf", "1e400", "-0.5", "1.001"])
def test_what_is_no_share_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="wanted a number from 0 to 1, or NA"):
        parse_share(word)


def test_numbers_of_tables_are_read() -> None:
    assert [*map(parse_count, ("0", "12", f"{(1 << 63) - 1}"))] == [0, 12, (1 << 63) - 1]
    assert [*map(parse_share, ("0.0", "1", "4.5e-07"))] == [0.0, 1.0, 4.5e-07]
    assert math.isnan(parse_share("NA"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.tsv, line 1: the columns are none; wanted the columns id, label, separated by"),
        ("id\tx\n", "line 1: the columns are 'id', 'x'; wanted the columns id, label, separated"),
        ("x" * 500 + "\ty" * 9, r"x…', 'y', 'y', 'y', 'y' and 5 more; wanted the columns id, lab"),
        ("id,label\n", "line 1: the columns are 'id,label', with commas; wanted"),
        ("id;label;class\n", "'id;label;class', with semicolons; wanted"),
        ("id label\n", "'id label', with spaces; wanted"),
        ("PK\3\4xl/workbook", r"t\.tsv: is an Excel workbook or another zip archive; save the ta"),
        ("i\0d\0\t\0l\0", r"t\.tsv: is UTF-16 text or no text; save the table as UTF-8 text; wa"),
        ("<html><body>", r"t\.tsv: is a web page \(HTML\).* wanted the columns id, label"),
        ("id\tlabel\na\tb\n\nc\n", "line 4: found 1 columns, wanted 2 as in the first line"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_text(tmp_path / "t.tsv", text)


def test_a_compressed_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(b"id\tlabel\n"))
    with pytest.raises(InputError, match="is a compressed file; decompress it first; wanted"):
        list(read_table(path, ("id",)))


def test_what_a_spreadsheet_adds_is_no_content(tmp_path: Path) -> None:
    assert read_text(tmp_path / "t.tsv", "\ufeffid\tlabel\r\na\tb\r\n\r\n") == [
        (2, {"id": "a", "label": "b"})
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tsv: cannot be read as a table .*No such file"):
        list(read_table(tmp_path / "gone.tsv", ("id",)))

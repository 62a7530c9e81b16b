"""Tables: writing the result files of a run, and reading tables with a header line.

The two legacy tables are those of the optimized fork of VirNucPro (v1.0). docs/results.md describes
every file. Text is UTF-8, and other bytes in ids are written as they were read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt

from virnucpro.backend.arrays import Float32Array, split_rows
from virnucpro.backend.contents import identify
from virnucpro.checkpoints.whole_files import open_whole
from virnucpro.errors import InputError, brief, name_few, shorten
from virnucpro.scoring.calls import ChunkCalls

FASTA_WIDTH = 80

_MAX_FIELD = (1 << 31) - 1

# What separates the columns of other tables.
_SIGNS = {",": "commas", ";": "semicolons", " ": "spaces"}

Column = npt.NDArray[Any]


def write_prediction_results(
    path: Path, frame_ids: Iterable[str], frame_scores: Float32Array
) -> None:
    """Write the fork's `prediction_results.txt`: a line for each open frame.

    Scores are float32, written with all digits of their float64 values, as the fork did.

    Args:
        path: The file to write.
        frame_ids: Names of the frames, in the order of the rows.
        frame_scores: float32 (F, 2), P(others) and P(virus) of each frame.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_whole(path) as file:
        file.write("Sequence_ID\tPrediction\tscore1\tscore2\n")
        file.writelines(
            # At a tie a frame is `others`, and a chunk is `True`: the fork's tables have it so.
            f"{frame_id}\t{'virus' if virus > others else 'others'}\t{others!r}\t{virus!r}\n"
            for frame_id, (others, virus) in zip(
                frame_ids, iterate_rows(*frame_scores.T), strict=True
            )
        )


def write_highest_scores(path: Path, chunk_ids: Iterable[str], chunks: ChunkCalls) -> None:
    """Write the fork's `prediction_results_highestscore.csv`: a line for each open chunk.

    The fork wrote numbers that pandas' default parser had read, whose last digit is sometimes
    wrong. The digits here are exact. Read as float32, both give the same numbers.

    Args:
        path: The file to write.
        chunk_ids: Names of all chunks, in input order.
        chunks: Their calls; chunks without a score are left out.

    Raises:
        OutputError: The file cannot be written.
    """
    rows = iterate_rows(chunks.is_open, chunks.is_virus, chunks.max_others, chunks.max_virus)
    with open_whole(path) as file:
        file.write("Modified_ID\tIs_Virus\tmax_score_0\tmax_score_1\n")
        file.writelines(
            f"{chunk_id}\t{virus}\t{score_0!r}\t{score_1!r}\n"
            for chunk_id, (is_listed, virus, score_0, score_1) in zip(chunk_ids, rows, strict=True)
            if is_listed
        )


def write_records(path: Path, record_ids: Iterable[str], **columns: Column) -> None:
    """Write `records.tsv`: a line for each input record, and a column for each array, in order.

    NaN is written as `NA`, and any other number so that it reads back as the same number.

    Raises:
        OutputError: The file cannot be written.
    """
    # Chosen once for each column: millions of records have a dozen values each.
    forms: list[Callable[[Any], str]] = [
        format_number if column.dtype.kind == "f" else str for column in columns.values()
    ]
    with open_whole(path) as file:
        file.write("\t".join(("record_id", *columns)) + "\n")
        file.writelines(
            "\t".join((record_id, *(form(value) for form, value in zip(forms, row, strict=True))))
            + "\n"
            for record_id, row in zip(record_ids, iterate_rows(*columns.values()), strict=True)
        )


def format_number(value: float) -> str:
    """Return the shortest text that reads back as the number; `NA` for NaN."""
    return "NA" if math.isnan(value) else repr(value)


def parse_count(word: str) -> int:
    """Return a whole number of a table that is not negative, and that an int64 can hold.

    Raises:
        ValueError: It is something else.
    """
    # int() would also read "1_000", and digits of other scripts.
    if len(word) < 20 and word.isascii() and word.isdigit() and int(word) < 1 << 63:
        return int(word)
    raise ValueError(f"found {brief(word)}, wanted a whole number of at least 0")


def parse_share(word: str) -> float:
    """Return a score or a probability that `format_number` wrote; NaN for `NA`.

    Raises:
        ValueError: It is something else.
    """
    if word == "NA":
        return math.nan
    with suppress(ValueError):
        share = float(word)
        # `nan` is none: it is not between any two numbers.
        if 0 <= share <= 1:
            return share
    raise ValueError(f"found {brief(word)}, wanted a number from 0 to 1, or NA")


@contextmanager
def explaining_numbers(path: Path, line_number: int) -> Iterator[None]:
    """Say in which line of a table a number is wrong.

    Raises:
        InputError: The body has raised a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(f"{path}, line {line_number}: {error}") from error


def write_fasta(
    path: Path, records: Iterable[tuple[str, str]], width: int | None = FASTA_WIDTH
) -> None:
    """Write (header, sequence) pairs as FASTA; wrap sequences after `width` letters, or never.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_whole(path) as file:
        for header, sequence in records:
            file.write(f">{header}\n")
            # At least 1, because a range has no step of 0.
            step = width or max(1, len(sequence))
            file.writelines(
                sequence[start : start + step] + "\n" for start in range(0, len(sequence), step)
            )


def in_blocks(read: Callable[[int, int], list[str]], total: int) -> Iterator[str]:
    """Yield all of a store's names or sequences, read block by block."""
    for block in split_rows(0, total):
        yield from read(block.start, block.stop)


def iterate_rows(*columns: Column) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table as Python values; the columns are converted block by block."""
    for block in split_rows(0, len(columns[0])):
        yield from zip(*(column[block].tolist() for column in columns), strict=True)


def _explain_header(path: Path, header: Sequence[str], required: Sequence[str]) -> str:
    """Return what the first line of a table has in place of the columns that are wanted."""
    first = "\t".join(header)
    kind = identify(first.encode("utf-8", "surrogateescape"))
    if first.startswith("PK"):
        kind = "an Excel workbook or another zip archive; save the table as text"
    elif kind is None and "\0" in first:
        kind = "UTF-16 text or no text; save the table as UTF-8 text"
    wanted = f"wanted the columns {', '.join(required)}, separated by TABs"
    if kind is not None:
        return f"{path}: is {kind}; {wanted}"
    # Of another file, the first line may be one word of any length.
    found = name_few([repr(shorten(name, 80)) for name in header]) or "none"
    if len(header) == 1:
        found += next((f", with {name}" for sign, name in _SIGNS.items() if sign in first), "")
    return f"{path}, line 1: the columns are {found}; {wanted}; name them in the first line"


def read_table(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the wanted columns of each line of a TAB-separated table.

    Args:
        path: The table. Its first line names the columns; unknown columns are ignored.
        required: Columns that must exist.
        optional: Columns that are read if they exist.

    Raises:
        InputError: The table cannot be read, lacks a column, or has a line of another length.
    """
    try:
        # Ids may contain any bytes and quotes, as in FASTA headers. Excel may write a mark of the
        # encoding before the first letter.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            # A header of a FASTA file may be one word of any length; csv's limit is 131,072.
            csv.field_size_limit(_MAX_FIELD)
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(lines, [])
            if not set(required).issubset(header):
                raise InputError(_explain_header(path, header, required))
            # By name and not by position: later versions may add columns.
            places = {name: header.index(name) for name in (*required, *optional) if name in header}
            # A blank line has no words.
            for words in filter(None, lines):
                if len(words) != len(header):
                    raise InputError(
                        f"{path}, line {lines.line_num}: found {len(words)} columns, wanted "
                        f"{len(header)} as in the first line, separated by TABs"
                    )
                yield lines.line_num, {name: words[place] for name, place in places.items()}
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read as a table ({reason})") from error

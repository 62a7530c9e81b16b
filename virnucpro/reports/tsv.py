"""Reads tables with a header line that users or runs wrote; an error names the line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from virnucpro.errors import InputError


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
        # Ids may contain any bytes and quotes, as in FASTA headers.
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(lines, [])
            if not set(required).issubset(header):
                raise InputError(
                    f"{path}, line 1: the columns are {', '.join(header) or 'none'}, wanted "
                    f"{', '.join(required)}, separated by TABs; name them in the first line"
                )
            places = {name: header.index(name) for name in (*required, *optional) if name in header}
            for words in lines:
                if len(words) != len(header):
                    raise InputError(
                        f"{path}, line {lines.line_num}: found {len(words)} columns, wanted "
                        f"{len(header)} as in the first line, separated by TABs"
                    )
                yield lines.line_num, {name: words[place] for name, place in places.items()}
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error

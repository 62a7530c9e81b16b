"""Reading tables with a header line that users and runs wrote, and naming the line of a fault."""

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
        path: The table; its first line names the columns, of which others are ignored.
        required: Columns that must be there.
        optional: Columns that are read where they are there.

    Raises:
        InputError: It cannot be read, lacks a column, or has a line of another length.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(lines, [])
            missing = [name for name in required if name not in header]
            if missing:
                raise InputError(
                    f"{path}, line 1: the columns are {', '.join(header) or 'none'}, wanted "
                    f"{', '.join(required)}, separated by TABs; name them in the first line"
                )
            wanted = [name for name in (*required, *optional) if name in header]
            places = [header.index(name) for name in wanted]
            for words in lines:
                if len(words) != len(header):
                    raise InputError(
                        f"{path}, line {lines.line_num}: found {len(words)} columns, wanted "
                        f"{len(header)} as in the first line, separated by TABs"
                    )
                found = (words[place] for place in places)
                yield lines.line_num, dict(zip(wanted, found, strict=True))
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error

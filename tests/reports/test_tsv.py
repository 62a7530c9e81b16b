from __future__ import annotations

from pathlib import Path

import pytest

from virnucpro.errors import InputError
from virnucpro.reports.tables import read_table


def read(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    path.write_text(text)
    return list(read_table(path, ("id", "label"), ("group",)))


def test_columns_are_found_by_name_and_lines_are_numbered(tmp_path: Path) -> None:
    found = read(tmp_path / "t.tsv", 'x\tlabel\tid\n1\t"a\tb"\n2\t\tc\n')
    assert found == [(2, {"id": 'b"', "label": '"a'}), (3, {"id": "c", "label": ""})]


def test_optional_columns_are_read_where_they_are(tmp_path: Path) -> None:
    assert read(tmp_path / "t.tsv", "id\tlabel\tgroup\na\tb\tc\n") == [
        (2, {"id": "a", "label": "b", "group": "c"})
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.tsv, line 1: the columns are none, wanted id, label"),
        ("id\tx\n", "line 1: the columns are id, x, wanted id, label, separated by TABs"),
        ("id\tlabel\na\tb\n\n", "line 3: found 0 columns, wanted 2 as in the first line"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t.tsv", text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tsv: cannot be read as a table .*No such file"):
        list(read_table(tmp_path / "gone.tsv", ("id",)))

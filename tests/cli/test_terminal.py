"""Tables and bars that commands print."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.runs import REPOSITORY
from virnucpro.cli.main import main
from virnucpro.cli.terminal import counting_bars, format_table


def test_a_table_aligns_names_left_and_figures_right() -> None:
    assert format_table(("name", "tokens/s"), [("esm2", "1,234"), ("dnabert-s", "5")]) == (
        "name       tokens/s\nesm2          1,234\ndnabert-s         5"
    )


def test_a_table_is_never_cut_and_shows_brackets_as_they_are() -> None:
    long = "[bold]" + "x" * 500
    assert long in format_table(("a", "b"), [(long, ":warning:")])
    assert ":warning:" in format_table(("a", "b"), [(long, ":warning:")])


def test_without_a_terminal_there_are_no_bars() -> None:
    with counting_bars() as show:
        assert show is None


ESCAPES = "\x1b[31m\x1b]0;TITLE\x07\u202e"
SHOWN = r"\x1b[31m\x1b]0;TITLE\x07\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        [f"frames{ESCAPES}"],
        ["frames", f"--x{ESCAPES}"],
        ["frames", f"missing{ESCAPES}"],
        ["-c", f"missing{ESCAPES}", "frames", "a.fa"],
        ["frames", "a.fa", "-e", f"5{ESCAPES}"],
        ["checkpoints", "show", f"directory{ESCAPES}"],
        ["utils", "validate", f"reads{ESCAPES}.fa"],
        ["utils", "validate", "--max-errors", "1", f"reads{ESCAPES}.fa"],
    ],
)
def test_nothing_shown_controls_the_terminal(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path(f"directory{ESCAPES}").mkdir()
    Path(f"reads{ESCAPES}.fa").write_text(f">a{ESCAPES}\nACGT\n" * 2)
    Path("a.fa").write_text(">a\nACGT\n")
    result = CliRunner().invoke(main, arguments)
    assert SHOWN in result.output
    assert not set("\x1b\x07\u202e") & set(result.output)


@pytest.mark.slow
def test_a_table_keeps_ids_in_a_file_but_shows_them_escaped(tmp_path):
    reads = tmp_path / "reads.fa"
    reads.write_text(f">a{ESCAPES}\n{'ATG' * 100}\n")
    command = [sys.executable, str(REPOSITORY / "virnucpro"), "frames", str(reads), "-e", "300"]
    in_file = subprocess.run(command, capture_output=True, check=True).stdout
    assert ESCAPES.encode() in in_file
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs):
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # Linux's way to say that the terminal's other end is closed
            while chunk := os.read(ours, 1024):
                seen += chunk
    os.close(ours)
    assert SHOWN.encode() in seen
    assert b"\x1b" not in seen

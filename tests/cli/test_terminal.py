"""Tables and bars that commands print."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.runs import REPOSITORY
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.cli.main import main
from virnucpro.cli.terminal import counting_bars, echo, echo_summary, echo_wrapped, format_table
from virnucpro.errors import OutputError

COUNTS = dict.fromkeys(
    (*("records", "chunks", "frames", "distinct_dna"), "distinct_proteins", "duplicate_ids"), 6
) | {"unscored_frames": 0}
RULE = {"preset": None, "max_fdr": None, "viral_share": 0.5}
BACKEND = {
    **{"name": "toy", "version": "1", "alphabet": "dna", "weights": "w", "weights_identity": "i"},
    "embedding_dim": 8,
}
BINS = {"edges": [0, 1], "virus": [2], "others": [1], "none": [3]}
# What a summary does not show.
OTHERS = {
    "schema_version": 1,
    "started_at": "2026-01-31T12:00:00+00:00",
    "versions": {"virnucpro": "1"},
    "settings": {"chunk_length_bp": 500},
    "inputs": [],
    "backends": [BACKEND, BACKEND | {"alphabet": "protein"}],
    "classifier": {"path": "c", "identity": "i", "made_for": None},
    "frame_rule": "open",
    "precision": "fp32",
    "num_processes": 1,
    "histograms": {"length": BINS, "score": BINS, "probability": BINS},
    "passes": {},
}
RUN = {
    "counts": COUNTS | {"virus": 2, "others": 1, "none": 3, "virus_few_chunks": 1, "proviruses": 1},
    "reasons": {"empty": 1, "no_stretch": 2},
    "calls": RULE | {"by": "probability", "threshold": 0.75, "expected_fdr": 0.0634},
    "most_viral": [
        {
            "record_id": "contig\x1b[31m" + "x" * 60,
            "length": 12345,
            "score": 0.9,
            "probability": 0.9998498,
            "call": "virus",
            "confidence": "high",
        }
    ],
    "warnings": [],
    "seconds": {"open models": 1.0, "DNA embeddings": 20.0, "total": 30.25, "tables": 2.0},
}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run.json").write_text(json.dumps(OTHERS | RUN))
    return RunDirectory(tmp_path, "")


def test_wrapped_text_keeps_commands_whole(monkeypatch, capsys) -> None:
    text = "for the large models, run `virnucpro models download 500` and look at results/my-run"
    monkeypatch.setenv("COLUMNS", "40")
    echo_wrapped("do  ", text)
    assert capsys.readouterr().out == (
        "do  for the large models, run\n"
        "    `virnucpro models download 500` and\n"
        "    look at results/my-run\n"
    )


def test_the_summary_of_a_run(directory, capsys) -> None:
    echo_summary(directory, as_json=False, quiet=False)
    assert capsys.readouterr().out == (
        "\n"
        "call          records\n"
        "virus               2\n"
        "others              1\n"
        "none                3\n"
        "  empty             1\n"
        "  no_stretch        2\n"
        "\n"
        "called viral from a probability of 0.75 on\n"
        "expected false discovery rate of the viral records: 0.063, "
        "if 50 % of all records are viral (--viral-share)\n"
        "1 of 2 viral calls rests on one or two scored chunks\n"
        "1 viral region in records not called viral (proviruses): viral_regions.tsv\n"
        "\n"
        "most viral records                             bp  score  probability   call  confidence\n"
        r"contig\x1b[31m"
        "xxxxxxxxxxxxxxxxxxxxxxxxxx…  12,345    0.9    0.9998498  virus        high\n"
        "\n"
        "time: 30.2 s, most of it for DNA embeddings 20.0 s, tables 2.0 s\n"
        f"results: {directory.path}\n"
    )


def test_the_summary_of_a_run_with_a_prefix_names_its_files(tmp_path: Path, capsys) -> None:
    (tmp_path / "s1_run.json").write_text(json.dumps(OTHERS | RUN))
    echo_summary(RunDirectory(tmp_path, "s1", "s1"), as_json=False, quiet=False)
    out = capsys.readouterr().out
    assert out.endswith(f"results: {tmp_path}/s1_*\n")
    assert "(proviruses): s1_viral_regions.tsv\n" in out


def test_a_full_disk_under_standard_output_is_explained() -> None:
    wanted = r"standard output cannot be written \(No space left on device\); make room"
    # Without a buffer, which would be written once more when the file is closed.
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        io.TextIOWrapper(full, write_through=True) as text,
        redirect_stdout(text),
        pytest.raises(OutputError, match=wanted),
    ):
        echo("a line")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--help", "--version", "predict --help"])
def test_a_full_disk_under_the_help_is_explained(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "virnucpro", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.count("No space left on device") == 1


def test_a_quiet_command_prints_json_alone(directory, capsys) -> None:
    echo_summary(directory, as_json=False, quiet=True)
    assert capsys.readouterr().out == ""
    echo_summary(directory, as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out) == RUN | {"output_dir": str(directory.path)}


def test_a_run_without_viral_records_or_probabilities(directory, capsys) -> None:
    nothing = RUN | {
        "counts": COUNTS | {"virus": 0, "others": 0, "none": 1, "virus_few_chunks": 0},
        "calls": RULE | {"by": "score", "threshold": None, "expected_fdr": None},
        "most_viral": [],
    }
    directory.run_json.write_text(json.dumps(OTHERS | nothing))
    echo_summary(directory, as_json=False, quiet=False, seconds=0.5)
    printed = capsys.readouterr().out
    assert "none meets the bound on false discoveries\n\ntime: 0.5 s\n" in printed
    assert "most viral" not in printed


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


def test_every_command_prints_by_the_one_function():
    commands = list((REPOSITORY / "virnucpro/cli").glob("*.py"))
    assert len(commands) > 10
    others = [path.name for path in commands if re.search(r"click\.s?echo\(", path.read_text())]
    assert others == ["terminal.py"]

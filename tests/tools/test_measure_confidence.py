from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, run
from tools.measure_confidence import measure


def test_tiers_are_counted_by_length_and_call(tmp_path: Path) -> None:
    lines = [
        ("a", 300, "virus", "high", "virus"),
        ("b", 399, "virus", "high", "others"),
        ("c", 400, "others", "high", "others"),
        ("d", 400, "others", "low", "virus"),
        ("e", 9000, "virus", "low", "virus"),
        ("f", 9000, "none", "-", "virus"),
        ("g", 9000, "virus", "low", None),
    ]
    (tmp_path / "records.tsv").write_text(
        "record_id\tlength\tcall\tconfidence\n"
        + "".join(f"{name}\t{bp}\t{call}\t{tier}\n" for name, bp, call, tier, _ in lines)
    )
    labels = tmp_path / "labels.tsv"
    labels.write_text(
        "id\tlabel\n" + "".join(f"{line[0]}\t{line[4]}\n" for line in lines if line[4])
    )
    assert list(measure(tmp_path, labels, (400,))) == [
        ["all", "high", "2", "0.500", "1", "1.000", "0.750"],
        ["all", "low", "1", "1.000", "1", "0.000", "0.500"],
        ["0-399", "high", "2", "0.500", "0", "-", "0.500"],
        ["400+", "high", "0", "-", "1", "1.000", "1.000"],
        ["400+", "low", "1", "1.000", "1", "0.000", "0.500"],
    ]


@pytest.mark.slow
def test_it_reads_a_run(example_run: Path) -> None:
    program = (sys.executable, "-m", "tools.measure_confidence", example_run)
    done = run(*program, REPOSITORY / "examples" / "labels.tsv", "--lengths", 5000)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split()[:3] == ["length", "confidence", "called"]
    assert {line.split()[0] for line in lines} == {"all", "0-4999", "5000+"}
    of_all = [line.split() for line in lines if line.startswith("all")]
    assert sum(int(line[2]) + int(line[4]) for line in of_all) == 9

"""Makes inputs, starts runs as processes of their own, and reads what they leave."""

from __future__ import annotations

import copy
import math
import os
import pty
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from virnucpro.checkpoints.parts import finished_parts, finished_rows
from virnucpro.cli.main import main
from virnucpro.reports.checked_json import load_schema, make_validator
from virnucpro.reports.report import REPORT_NAME, read_report

REPOSITORY = Path(__file__).resolve().parents[1]
VIRNUCPRO = (sys.executable, "-m", "virnucpro")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")
SMALL_PARTS = (sys.executable, str(Path(__file__).with_name("small_parts.py")))
"""The command line, but with a part for every 64 rows, so that a small run has many."""

ROUNDED = 1.001e-4
"""A step of the last digit in records.tsv, which has 4 digits of a score."""

MISSING = object()
"""For `change`: takes the key out."""

SCORE_COLUMNS = {"score", "score1", "score2", "max_score_0", "max_score_1"}


def accelerate_launch(num_processes: int, *program: str) -> list[str]:
    """Return the command that starts `program` in several processes, on CPUs too."""
    # Port 0 is any free one: several tests may run at once.
    options = ["--multi_gpu", "--num_machines=1", "--main_process_port=0"]
    return [*LAUNCH, *options, f"--num_processes={num_processes}", *program]


def configured_launch(name: str, *program: str) -> list[str]:
    """Return the command that starts `program` as a file in accelerate_configs/ says."""
    return [*LAUNCH, "--config_file", str(REPOSITORY / f"accelerate_configs/{name}.yaml"), *program]


def predict_options(weights: Mapping[str, str]) -> list[str]:
    """Return the options of `predict` that use `weights`, on a CPU."""
    names = {name: f"--{name.replace('_', '-')}" for name in weights}
    return ["--device=cpu", *(f"{names[name]}={value}" for name, value in weights.items())]


def run(*command: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )


def invoke(*command: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process. Another one would import torch, which takes seconds."""
    done = CliRunner().invoke(main, list(map(str, command)))
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds, as long as the process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def wait_until_embedding(output_dir: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the run in a directory computes batches."""
    log_path = output_dir / "run.log"
    wait_for(lambda: log_path.exists() and "batches of up to" in log_path.read_text(), process)


def let_compute(process: subprocess.Popen[str], cpu_seconds: float) -> None:
    """Wait until a process and all below it have computed for so long, or the process has ended.

    Unlike a wait by the clock this lets the same be done on a machine that others use too.
    """
    wanted = _cpu_seconds(process.pid) + cpu_seconds
    while process.poll() is None and _cpu_seconds(process.pid) < wanted:
        time.sleep(0.05)


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        for one in [leader, *leader.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:2])
    return total


def on_a_terminal(*args: str, answer: str) -> tuple[int, str]:
    """Return the exit code and what a person sees who answers the question."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *args], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
    ) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        output = process.stdout.read()
    seen = b""
    try:
        while chunk := os.read(ours, 1024):
            seen += chunk
    except OSError:  # Linux's way to say that the terminal's other end is closed
        pass
    os.close(ours)
    return process.returncode, seen.decode() + output


def write_reads(path: Path, num_reads: int, seed: int = 0) -> Path:
    """Write random reads of 40 to 120 bp; every tenth repeats an earlier one."""
    generator = random.Random(seed)
    reads: list[str] = []
    for number in range(num_reads):
        length = generator.randint(40, 120)
        new = "".join(generator.choices("ACGT", k=length))
        reads.append(generator.choice(reads) if number % 10 == 9 else new)
    path.write_text("".join(f">read_{number}\n{read}\n" for number, read in enumerate(reads)))
    return path


def read_tables(directory: Path) -> dict[str, bytes]:
    """Return the contents of the tables and of viral.fasta, by name."""
    names = ("records.tsv", "viral.fasta", "chunks.tsv", "scores.bedgraph")
    names += tuple(f"viral_regions.{ending}" for ending in ("tsv", "bed", "gff3"))
    paths = [*directory.glob("*_merged/*"), *(directory / name for name in names)]
    assert len(paths) == 9
    return {path.name: path.read_bytes() for path in paths}


def assert_tables_equal_but_for_rounding(found: Path, wanted: Path) -> None:
    """Compare the tables of two runs whose batches differ, and so perhaps the last bits."""
    others = read_tables(wanted)
    for name, table in read_tables(found).items():
        bound = 1e-6 if name.startswith("prediction") else ROUNDED
        lines = [text.decode().splitlines() for text in (table, others[name])]
        for line, other_line in zip(*lines, strict=True):
            words = [re.split(r"[\t =]", each) for each in (line, other_line)]
            for place, (one, other) in enumerate(zip(*words, strict=True)):
                if one != other:
                    # A logit changes by more than the score that it is of.
                    is_evidence = name == "chunks.tsv" and place == len(words[0]) - 1
                    wanted = pytest.approx(float(other), abs=20 * bound if is_evidence else bound)
                    assert float(one) == wanted


def parts_of(directory: Path) -> dict[str, float]:
    """Return the run's finished parts and when each was last changed."""
    parts = [*finished_parts(directory / "checkpoints/dna")]
    parts += finished_parts(directory / "checkpoints/protein")
    return {str(part.relative_to(directory)): part.stat().st_mtime for part in parts}


def rows_of(directory: Path, alphabet: str) -> list[int]:
    """Return the rows in all finished parts, one after the other as they are stored."""
    parts = finished_parts(directory / "checkpoints" / alphabet)
    return [int(row) for part in parts for row in finished_rows([part])]


def distinct_rows(directory: Path, alphabet: str) -> list[int]:
    """Return the rows that have to be embedded: the first of each sequence."""
    table = directory / f"checkpoints/frames/representatives_{alphabet}.int64"
    return np.unique(np.fromfile(table, np.int64)).tolist()


def read_table(path: Path) -> list[dict[str, str]]:
    header, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    names = header.split("\t")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


def read_known_report(directory: Path) -> dict[str, Any]:
    """Return the report.json in a directory, of which the schema knows every key."""
    report = read_report(directory / REPORT_NAME)
    assert_schema_knows(report, REPORT_NAME)
    return report


def assert_schema_knows(document: Mapping[str, Any], name: str) -> None:
    """Compare a document with a schema of the package, and allow no other key in it."""
    make_validator(_forbid_others(load_schema(name))).validate(document)


def _forbid_others(schema: Any) -> Any:
    """Return a schema that allows no keys but those that it names."""
    if isinstance(schema, list):
        return [_forbid_others(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _forbid_others(one) for name, one in schema.items()}
    return strict | {"additionalProperties": False} if "properties" in schema else strict


def change(document: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """Return a copy of a document with another value at a place, or without one."""
    changed = copy.deepcopy(document)
    at: Any = changed
    for name in place[:-1]:
        at = at[name]
    if value is MISSING:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return changed


def assert_same_table(path: Path, wanted_path: Path, bound: float) -> None:
    """Compare two tables: scores to `bound`, everything else and the order to the letter."""
    found, wanted = read_table(path), read_table(wanted_path)
    assert len(found) == len(wanted)
    for row, wanted_row in zip(found, wanted, strict=True):
        assert list(row) == list(wanted_row)
        for name, value in wanted_row.items():
            if name in SCORE_COLUMNS and value != "NA":
                assert math.isclose(float(row[name]), float(value), rel_tol=0, abs_tol=bound)
            else:
                assert row[name] == value

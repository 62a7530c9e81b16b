from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, run
from tools.measure_duplicates import simulate_reads
from virnucpro.sequences.frames import reverse_complement

GENOMES = (b"ACGTTGCA" * 5 + b"GGATTACA" * 9, b"TTT", b"CCCCCGAGAGACATTAGGA" * 4)


def test_reads_come_from_everywhere_on_both_strands() -> None:
    reads = list(simulate_reads(GENOMES, 2_000, 20, error_rate=0, seed=0))
    places = {genome[at : at + 20] for genome in GENOMES for at in range(len(genome) - 19)}
    assert set(reads) == places | {reverse_complement(place) for place in places}
    assert list(simulate_reads(GENOMES, 2_000, 20, error_rate=0, seed=0)) == reads


def test_errors_are_as_frequent_as_asked_for() -> None:
    exact, wrong = (
        b"".join(simulate_reads([b"A" * 5_000], 200, 100, error_rate, seed=0))
        for error_rate in (0, 0.1)
    )
    assert set(exact) <= set(b"AT")
    # Of 20,000 bases 1,500, with a standard deviation of 37.
    share = sum(base in b"CG" for base in wrong) / len(wrong)
    assert share == pytest.approx(0.05, abs=0.01)


@pytest.mark.slow
def test_repeats_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_text(f">a\n{'ACGATTGCA' * 30}\n>b\n{'ACGATTGCA' * 30}\n")
    done = run(sys.executable, "-m", "tools.measure_duplicates", path, cwd=REPOSITORY)
    found = re.fullmatch(
        r"2 records, (\d+) open frames; dna: (\d+) distinct, 50.00% saved; "
        r"protein: (\d+) distinct, \d\d\.\d\d% saved\n",
        done.stdout,
    )
    num_frames, num_dna, num_proteins = map(int, found.groups())
    assert 0 < num_proteins <= num_dna == num_frames / 2

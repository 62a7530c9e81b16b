"""Planting phages, measuring what is found, and fitting: on genomes and scores that are known."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs import read_table
from tools import plant_phages
from tools.fit_regions import Contig, join_chunks
from tools.fit_regions import measure as measure_model
from tools.measure_regions import match, measure, read_regions
from virnucpro.scoring.regions import REGION_MODEL
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frames import reverse_complement


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("genomes")
    generator = random.Random(0)
    rows = [
        ("bacterium", "bacteria", "chromosome", "0", 120_000),
        ("lysogen", "bacteria", "chromosome", "9", 120_000),
        ("phage", "viral", "phage", "0", 45_000),
    ]
    index = ["id\tfile\tlength\tclass\tsub\tgroup\tsplit\tprophage_like"]
    with (directory / "all.fa").open("w") as file:
        for name, kind, sub, prophage, length in rows:
            letters = "".join(generator.choices("ACGT", k=length))
            file.write(f">{name}\n{letters}\n")
            index.append(f"{name}\tall.fa\t{length}\t{kind}\t{sub}\tg\ttest\t{prophage}")
    (directory / "index.tsv").write_text("\n".join(index) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        words = f"plant_phages {directory}/index.tsv --split test --num 2 --bacteria-mb 0.1"
        patch.setattr(sys, "argv", [*words.split(), "--output", str(directory / "planted")])
        plant_phages.main()
    return directory


def test_the_truth_says_where_the_phage_is(planted: Path) -> None:
    genomes = {record.id: record.sequence for record in RecordReader(planted / "all.fa", "dna")}
    strands = (genomes["phage"], reverse_complement(genomes["phage"].encode()).decode())
    contigs = {
        record.id: record.sequence
        for record in RecordReader(planted / "planted/contigs.fasta", "dna")
    }
    rows = read_table(planted / "planted/truth.tsv")
    assert [row["record_id"] for row in rows] == list(contigs)
    assert [row["record_id"] for row in rows if row["phage"] == "-"] == ["bacterium"]
    for row in rows[:-1]:
        start, end = int(row["start"]), int(row["end"])
        contig = contigs[row["record_id"]]
        assert end - start == int(row["record_id"].split("_")[1])
        assert any(contig[start:end] in strand for strand in strands)
        assert contig[:start] + contig[end:] in genomes["bacterium"]
        assert start >= 10_000
        assert len(contig) - end >= 10_000


def test_found_phages_and_false_regions_are_counted(planted: Path, tmp_path: Path) -> None:
    truth = planted / "planted/truth.tsv"
    lines = ["record_id\tstart\tend"]
    for row in read_table(truth):
        if row["phage"] == "-":
            lines.append(f"{row['record_id']}\t0\t5000\n{row['record_id']}\t9000\t10000")
        elif row["record_id"] != "planted_20000_1":
            lines.append(f"{row['record_id']}\t{int(row['start']) + 700}\t{row['end']}")
    (tmp_path / "viral_regions.tsv").write_text("\n".join(lines) + "\n")
    regions = read_regions(tmp_path / "viral_regions.tsv")
    text = measure(regions, truth, {"bacterium": 120_000}).splitlines()
    shares = {words[0]: (words[3], words[5]) for words in (line.split("\t") for line in text[1:4])}
    assert shares == {
        "10000": ("1.000", "350"),
        "20000": ("0.500", "350"),
        "40000": ("1.000", "350"),
    }
    assert text[4] == "false regions: 1 in 0.12 Mb of 1 contigs, 8.33 per Mb"


def test_the_best_region_is_matched() -> None:
    assert match((100, 200), [(0, 90), (120, 220), (190, 400)]) == (80 / 120, (20, 20))
    assert match((100, 200), [(300, 400)])[0] == 0


def test_a_model_is_measured_on_chunks() -> None:
    bacteria, phages = [np.full(240, -2.0), np.full(200, -1.0)], [np.full(90, 2.0)]
    contigs = join_chunks(bacteria, phages, num_contigs=20, seed=0)
    assert len(contigs) == 62
    found, num_false = measure_model(contigs, REGION_MODEL)
    assert found == [1.0, 1.0, 1.0]
    assert num_false == 0
    lysogen = np.full(200, -2.0)
    lysogen[50:70] = 2.0
    _, num_false = measure_model([*contigs, Contig(lysogen, None)], REGION_MODEL)
    assert num_false == pytest.approx(1 / 0.32)

"""Planting phages, measuring what is found, and fitting: on genomes and scores that are known."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs import read_table
from tools import fit_regions, plant_phages
from tools.fit_regions import Contig, ContigSet, fit_rules, join_chunks, read_planted
from tools.measure_finer_windows import place_end
from tools.measure_regions import match, measure, read_bed, read_regions
from virnucpro.backend.arrays import Float64Array
from virnucpro.scoring.region_model import REGION_MODEL
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frames import reverse_complement

CHUNK_BP = 500


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


def test_whole_genomes_are_written_by_turns(planted: Path, monkeypatch) -> None:
    words = f"plant_phages {planted}/index.tsv --split test --whole"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--output", str(planted / "whole")])
    plant_phages.main()
    genomes = {record.id: record.sequence for record in RecordReader(planted / "all.fa", "dna")}
    for kind, name in (("bacteria", "bacterium"), ("phages", "phage")):
        (record,) = RecordReader(planted / "whole" / f"{kind}.fasta", "dna")
        assert (record.id, record.sequence) == (name, genomes[name])


def test_listed_bacteria_are_left_out(planted: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "prophages.tsv").write_text("id\tstart\nbacterium\t0\n")
    words = f"plant_phages {planted}/index.tsv --split test --whole --output {tmp_path}/left"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--without", str(tmp_path / "prophages.tsv")])
    plant_phages.main()
    assert (tmp_path / "left/bacteria.fasta").read_text() == ""
    assert [record.id for record in RecordReader(tmp_path / "left/phages.fasta", "dna")] == [
        "phage"
    ]


def test_regions_of_other_programs_are_read(tmp_path: Path) -> None:
    (tmp_path / "other.bed").write_text("a\t0\t10\tone\nb\t5\t9\na\t20\t30\n")
    assert read_bed(tmp_path / "other.bed") == {"a": [(0, 10), (20, 30)], "b": [(5, 9)]}


def test_an_end_is_put_between_viral_windows_and_others() -> None:
    starts = np.arange(8_500, 11_001, 100)
    logits = np.where(starts + 250 >= 9_700, 3.0, -3.0)
    assert place_end(starts, logits, 10_000, is_first=True) == pytest.approx(9_700, abs=50)
    assert place_end(starts, -logits, 10_000, is_first=False) == pytest.approx(9_700, abs=50)


def test_the_best_region_is_matched() -> None:
    assert match((100, 200), [(0, 90), (120, 220), (190, 400)]) == (80 / 120, (20, 20))
    assert match((100, 200), [(300, 400)])[0] == 0


def test_a_model_is_measured_on_chunks() -> None:
    bacteria, phages = [np.full(240, -2.0), np.full(200, -1.0)], [np.full(90, 2.0)]
    contigs = join_chunks(bacteria, phages, CHUNK_BP, num_contigs=20, seed=0)
    assert len(contigs) == 62
    clean = ContigSet(contigs, CHUNK_BP).measure(REGION_MODEL)
    assert clean.found == [1.0, 1.0, 1.0]
    assert clean.false_per_mb == 0
    lysogen = np.full(200, -2.0)
    lysogen[50:70] = 2.0
    found = ContigSet([*contigs, Contig(lysogen, None)], CHUNK_BP).measure(REGION_MODEL)
    assert found.false_per_mb == pytest.approx(1 / 0.32)


def draw_evidence(seed: int) -> tuple[list[Float64Array], list[Float64Array]]:
    """Return the evidence of bacteria and phages: one chunk says little, and many say much."""
    generator = np.random.default_rng(seed)
    bacteria, phages = (
        [generator.normal(mean, 1.5, 220) for _ in range(6)] for mean in (-1.2, 1.2)
    )
    return bacteria, phages


def plant(bacteria: list[Float64Array], phages: list[Float64Array]) -> list[Contig]:
    """Return each bacterium as it is, and with 20, 40 and 80 chunks of a phage after chunk 50."""
    planted = [Contig(bacterium, None) for bacterium in bacteria]
    for size in (20, 40, 80):
        for host, phage in zip(bacteria, phages, strict=True):
            joined = np.concatenate([host[:50], phage[:size], host[50:]])
            planted.append(Contig(joined, (50, 50 + size)))
    return planted


@pytest.fixture
def few_rules(monkeypatch) -> None:
    """Compare three rules of each threshold."""
    every_rule = fit_regions.list_rules
    monkeypatch.setattr(fit_regions, "list_rules", lambda: [*every_rule()][::15])


@pytest.mark.usefixtures("few_rules")
def test_a_rule_is_fitted_to_genomes() -> None:
    joined = join_chunks(*draw_evidence(0), CHUNK_BP, num_contigs=10, seed=0)
    planted = plant(*draw_evidence(1))
    best, *others = rules = fit_rules(joined, planted, [], CHUNK_BP)
    worths = [sum(one.worth for one in rule.found) for rule in rules]
    assert worths == sorted(worths, reverse=True)
    assert min(min(one.found) for one in best.found) > 0.7
    assert len(others) > 1


@pytest.mark.usefixtures("few_rules")
def test_a_rule_finds_a_weak_virus_and_sees_few_false_regions() -> None:
    joined = join_chunks(*draw_evidence(0), CHUNK_BP, num_contigs=10, seed=0)
    planted = plant(*draw_evidence(0))
    weak = Contig(np.repeat([0, 0.55, 0], (152, 300, 152)), (152, 452))

    def thresholds(planted: list[Contig], must_find: list[Contig]) -> set[float]:
        return {model.least for _, model in fit_rules(joined, planted, must_find, CHUNK_BP)}

    assert thresholds(planted, []) == {0.3, 0.4, 0.5, 0.6, 0.7, 0.8}
    assert thresholds(planted, [weak]) == {0.3, 0.4, 0.5}
    # The same stretch in a bacterium is false: one in less than a megabase is too many.
    assert thresholds([*planted, weak._replace(phage=None)], []) == {0.6, 0.7, 0.8}


def test_contigs_of_a_run_are_read_with_their_phages(example_run: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.tsv"
    truth.write_text("record_id\tstart\tend\nNC_073849.1\t-\t-\nNC_008253.1:1-8000\t1000\t4000\n")
    virus, bacterium = read_planted(example_run, truth)
    assert (bacterium.phage, virus.phage) == ((1, 4), None)
    assert (len(bacterium.evidence), len(virus.evidence)) == (8, 4)
    rows = read_table(example_run / "chunks.tsv")
    wanted = [float(row["evidence"]) for row in rows if row["record_id"] == "NC_073849.1"]
    assert virus.evidence.tolist() == wanted

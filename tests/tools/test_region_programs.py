"""Planting phages, measuring what is found, and fitting: on genomes and scores that are known."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs import REPOSITORY, read_table
from tools import fit_regions, plant_phages
from tools.fit_regions import (
    Contig,
    ContigSet,
    Genome,
    add_logit,
    divide,
    fit_rules,
    fit_weights,
    join_chunks,
    read_planted,
    weigh,
)
from tools.measure_finer_windows import place_end
from tools.measure_regions import match, measure, read_bed, read_regions
from virnucpro.scoring.classifier_files import read_classifier
from virnucpro.scoring.region_model import REGION_MODEL
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
    contigs = join_chunks(bacteria, phages, num_contigs=20, seed=0)
    assert len(contigs) == 62
    clean = ContigSet(contigs).measure(REGION_MODEL)
    assert clean.found == [1.0, 1.0, 1.0]
    assert clean.false_per_mb == 0
    lysogen = np.full(200, -2.0)
    lysogen[50:70] = 2.0
    found = ContigSet([*contigs, Contig(lysogen, None)]).measure(REGION_MODEL)
    assert found.false_per_mb == pytest.approx(1 / 0.32)


def make_genomes(generator: np.random.Generator) -> dict[str, list[Genome]]:
    """Return genomes of which a chunk says little, and many chunks say much."""
    return {
        kind: [
            Genome(
                generator.normal(middle, 1.5, 220),
                generator.normal(middle, 2, (220, 4)) * [1, 1, 1, 0.1],
            )
            for _ in range(6)
        ]
        for kind, middle in (("bacteria", -1.2), ("phages", 1.2))
    }


def plant(genomes: dict[str, list[Genome]]) -> fit_regions.Planted:
    """Return each bacterium as it is, and with 20, 40 and 80 chunks of a phage after chunk 50."""
    planted: fit_regions.Planted = [(bacterium, None) for bacterium in genomes["bacteria"]]
    for size in (20, 40, 80):
        for pair in zip(genomes["bacteria"], genomes["phages"], strict=True):
            whole = zip(*pair, strict=True)
            joined = (np.concatenate([host[:50], phage[:size], host[50:]]) for host, phage in whole)
            planted.append((Genome(*joined), (50, 50 + size)))
    return planted


@pytest.fixture
def few_rules(monkeypatch) -> None:
    """Compare two rules of each threshold, with one penalty and share of the logit."""
    monkeypatch.setattr(fit_regions, "_PENALTIES", (1.0,))
    monkeypatch.setattr(fit_regions, "_SHARES", (0.3,))
    every_rule = fit_regions.list_rules
    monkeypatch.setattr(fit_regions, "list_rules", lambda weights: [*every_rule(weights)][::9])


@pytest.mark.usefixtures("few_rules")
def test_a_rule_is_fitted_to_genomes() -> None:
    generator = np.random.default_rng(0)
    train, planted = make_genomes(generator), plant(make_genomes(generator))
    for use_weights in (True, False):
        best, *others = rules = fit_rules(train, planted, [], use_weights, num=2)
        assert len(best.model.weights) == (5 if use_weights else 0)
        worths = [sum(one.worth for one in rule.found) for rule in rules]
        assert worths == sorted(worths, reverse=True)
        assert min(min(one.found) for one in best.found) > 0.7
        assert len(others) > 1
        assert fit_rules(train, planted, [], use_weights, num=2) == rules


@pytest.mark.usefixtures("few_rules")
def test_a_rule_finds_a_weak_virus_and_sees_few_false_regions() -> None:
    train = make_genomes(np.random.default_rng(0))
    planted = plant(train)
    log_odds = np.repeat([0, 0.55, 0], (152, 300, 152))
    weak = Genome(log_odds, np.zeros((604, 4)))

    def thresholds(planted: fit_regions.Planted, must_find: fit_regions.Planted) -> set[float]:
        return {rule.model.least for rule in fit_rules(train, planted, must_find, False, num=2)}

    assert thresholds(planted, []) == {0.3, 0.4, 0.5, 0.6, 0.7, 0.8}
    assert thresholds(planted, [(weak, (152, 452))]) == {0.3, 0.4, 0.5}
    # The same stretch in a bacterium is false: one in less than a megabase is too many.
    assert thresholds([*planted, (weak, None)], []) == {0.6, 0.7, 0.8}


def test_contigs_of_a_run_are_read_with_their_phages(example_run: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.tsv"
    truth.write_text("record_id\tstart\tend\nNC_073849.1\t-\t-\nNC_008253.1:1-8000\t1000\t4000\n")
    (bacterium, place), (virus, nowhere) = read_planted(example_run, truth)
    assert (place, nowhere) == ((2, 8), None)
    assert (len(bacterium.log_odds), len(virus.log_odds)) == (16, 7)
    _, metadata, _ = read_classifier(REPOSITORY / "virnucpro/data/mini/500_model.safetensors")
    rows = read_table(example_run / "chunks.tsv")
    wanted = [float(row["evidence"]) for row in rows if row["record_id"] == "NC_073849.1"]
    # The scores of the table are rounded, and so is the logit.
    assert weigh(virus, metadata.regions.weights) == pytest.approx(wanted, abs=0.01)


def test_the_weights_of_a_fold_do_not_know_its_genomes() -> None:
    train = make_genomes(np.random.default_rng(0))
    folds = divide(train, 1.0)
    for kind, genomes in train.items():
        held = [one for fold in folds for one in fold.genomes[kind]]
        assert sorted(map(id, held)) == sorted(map(id, genomes))
    # Other genomes in the fold, and the same weights.
    changed = {kind: list(genomes) for kind, genomes in train.items()}
    changed["phages"][0] = Genome(np.ones(220), np.full((220, 4), 99.0))
    again = divide(changed, 1.0)
    assert [one.weights == other.weights for one, other in zip(folds, again, strict=True)] == [
        True,
        *[False] * 4,
    ]


def test_weights_tell_phages_from_bacteria_by_means_of_chunks() -> None:
    """Single chunks overlap, and windows of them do not."""
    generator = np.random.default_rng(0)
    genomes = {
        kind: [Genome(np.zeros(100), generator.normal(middle, 2, (100, 4))) for _ in range(9)]
        for kind, middle in (("bacteria", -0.5), ("phages", 0.5))
    }
    weights = tuple(fit_weights(genomes, penalty=0.01))
    low, high = ([weigh(each, weights) for each in genomes[kind]] for kind in genomes)
    assert max(each.mean() for each in low) < min(each.mean() for each in high)
    assert max(each.max() for each in low) > min(each.min() for each in high)


def test_a_share_of_the_logit_is_added_and_the_spread_stays() -> None:
    genome = Genome(np.zeros(3), np.array([[1.0, 2.0], [3.0, -4.0], [5.0, 0.0]]))
    evidence = weigh(genome, (0.5, 0.0, 1.0))
    added = weigh(genome, add_logit((0.5, 0.0, 1.0), 0.5))
    assert added == pytest.approx((evidence + 0.5 * genome.features[:, -1]) / 1.3, rel=1e-5)

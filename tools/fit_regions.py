r"""Fits the hidden Markov model that finds viral regions.

    python -m tools.plant_phages genomes/index.tsv more/index.tsv --split train --whole \
      --bacteria-mb 16 --phages-mb 8 --output train
    python -m tools.find_prophages genomes/index.tsv more/index.tsv --output prophages.tsv
    python -m tools.plant_phages genomes/index.tsv more/index.tsv --split valid --num 100 \
      --without prophages.tsv --output planted
    virnucpro predict train/bacteria.fasta -m mini -o train/bacteria
    virnucpro predict train/phages.fasta -m mini -o train/phages
    virnucpro predict planted/contigs.fasta -m mini -o planted/run
    python -m tools.fit_regions --train train --planted planted/run planted/truth.tsv \
      --must-find assembly_predictions assembly_truth.tsv \
      --classifier virnucpro/data/mini/1000_model.safetensors --output fitted.safetensors

It measures every rule on two sets of contigs, by the evidence in `chunks.tsv`:

- Contigs put together of chunks of train: 100 to 200 kb of a bacterium, with 10, 20 or 40 kb of a
  phage among them, and whole bacteria.
- Contigs of valid, in which phages are really planted.

A line shows which share of the phages of each length a rule finds (overlap of at least 0.5), and
how many false regions of 5 kb or more it sees per megabase of bacteria, on each set. A rule may
not exceed the limits of false regions, and must find the viruses of `--must-find`: for the small
model, the one of docs/tutorial-assembly.md (a table like truth.tsv: `contig_1`, 8000, 14334). The
best misses the goals by the least on both sets. `--output` writes the classifier with its numbers.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tools.measure_regions import FALSE_BP, MIN_OVERLAP
from virnucpro.backend.arrays import BoolArray, Float64Array
from virnucpro.reports.tables import read_table
from virnucpro.scoring.classifier_files import read_classifier, save_classifier
from virnucpro.scoring.region_model import RegionModel
from virnucpro.scoring.regions import find_spans

GOALS = {10_000: 0.8, 20_000: 0.9, 40_000: 0.95}
# On train and on planted contigs of valid. The goal is 1. The encoders have seen the bacteria of
# train, so they look less viral.
MAX_FALSE_PER_MB = (0.7, 1.0)
# Chance takes some of the goals on other genomes.
_MARGIN = 0.03
_CONTIG_BP = (100_000, 200_000)
_MARGIN_BP = 10_000
_NUM_BEST = 10


class Contig(NamedTuple):
    """The chunks of a contig.

    Attributes:
        evidence: float64, of each chunk; NaN without a score.
        phage: Where its phage begins and ends, in chunks; None if it has no phage.
    """

    evidence: Float64Array
    phage: tuple[float, float] | None


def read_evidence(run: Path) -> dict[str, Float64Array]:
    """Return the evidence of the chunks of each record of a finished run: float64, NaN without."""
    evidence = defaultdict(list)
    for _, row in read_table(run / "chunks.tsv", ("record_id", "evidence")):
        evidence[row["record_id"]].append(float(row["evidence"].replace("NA", "nan")))
    return {name: np.array(values) for name, values in evidence.items()}


def read_planted(run: Path, truth: Path) -> list[Contig]:
    """Return the contigs of a run that a table names, and where their phages are."""
    evidence = read_evidence(run)
    records = read_table(run / "records.tsv", ("record_id", "length"))
    length_bp = {row["record_id"]: int(row["length"]) for _, row in records}
    contigs = []
    for _, row in read_table(truth, ("record_id", "start", "end")):
        values = evidence[row["record_id"]]
        chunk_bp = length_bp[row["record_id"]] / len(values)
        ends = (row["start"], row["end"])
        phage = None if "-" in ends else (int(ends[0]) / chunk_bp, int(ends[1]) / chunk_bp)
        contigs.append(Contig(values, phage))
    return contigs


def join_chunks(
    bacteria: list[Float64Array],
    phages: list[Float64Array],
    chunk_bp: int,
    num_contigs: int,
    seed: int,
) -> list[Contig]:
    """Return contigs of each length of phage, and all bacteria as they are."""
    rng = np.random.default_rng(seed)
    least, most = (length_bp // chunk_bp for length_bp in _CONTIG_BP)
    margin = _MARGIN_BP // chunk_bp
    hosts = [host for host in bacteria if len(host) >= least]
    contigs = []
    for length_bp, _ in itertools.product(GOALS, range(num_contigs)):
        num_chunks = length_bp // chunk_bp
        host = hosts[rng.integers(len(hosts))]
        size = int(rng.integers(least, min(most, len(host)) + 1))
        host = _draw_piece(rng, host, size)
        long_enough = [phage for phage in phages if len(phage) >= num_chunks]
        piece = _draw_piece(rng, long_enough[rng.integers(len(long_enough))], num_chunks)
        start = int(rng.integers(margin, size - margin + 1))
        evidence = np.concatenate([host[:start], piece, host[start:]])
        contigs.append(Contig(evidence, (start, start + num_chunks)))
    return contigs + [Contig(each, None) for each in bacteria]


def _draw_piece(rng: np.random.Generator, chunks: Float64Array, size: int) -> Float64Array:
    start = rng.integers(len(chunks) - size + 1)
    return chunks[start : start + size]


class Measured(NamedTuple):
    """What a rule finds.

    Attributes:
        found: The share of the phages of each length of `GOALS`.
        false_per_mb: False regions per megabase.
    """

    found: list[float]
    false_per_mb: float

    @property
    def worth(self) -> float:
        """The larger, the less of the goals is missed."""
        goals = np.array(list(GOALS.values())) + _MARGIN
        return float(np.minimum(self.found, goals).sum())


class ContigSet:
    """Contigs laid end to end, on which rules are measured."""

    def __init__(self, contigs: list[Contig], chunk_bp: int) -> None:
        self._chunk_bp = chunk_bp
        self._evidence = np.concatenate([contig.evidence for contig in contigs])
        self._first = np.cumsum([0, *(len(contig.evidence) for contig in contigs)])
        self._is_host = np.array([contig.phage is None for contig in contigs])
        self._phage = np.array([contig.phage or (0, 0) for contig in contigs])
        self._length_bp = np.rint(np.diff(self._phage)[:, 0] * chunk_bp)
        self._phage += self._first[:-1, None]
        self._num_mb = np.diff(self._first)[self._is_host].sum() * chunk_bp / 1e6

    def measure(self, model: RegionModel) -> Measured:
        """Return what a rule finds."""
        is_found, num_false = self.compare(model)
        found = [float(is_found[self._length_bp == length_bp].mean()) for length_bp in GOALS]
        return Measured(found, num_false / self._num_mb)

    def compare(self, model: RegionModel) -> tuple[BoolArray, int]:
        """Return whether the phage of each contig is found, and the number of false regions."""
        begin, end = find_spans(self._evidence, self._first, model)
        is_long = (end - begin) * self._chunk_bp >= model.min_length_bp
        begin, end = begin[is_long], end[is_long]
        contig = np.searchsorted(self._first, begin, "right") - 1
        is_false = self._is_host[contig] & ((end - begin) * self._chunk_bp >= FALSE_BP)
        first, stop = self._phage[contig].T
        shared = np.minimum(end, stop) - np.maximum(begin, first)
        overlap = shared / (np.maximum(end, stop) - np.minimum(begin, first))
        best = np.zeros(len(self._is_host))
        np.maximum.at(best, contig, overlap)
        return best >= MIN_OVERLAP, int(is_false.sum())


def list_rules() -> Iterator[RegionModel]:
    """Yield the rules to compare."""
    grid = itertools.product(
        (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (2.0, 3.0, 4.0), (3.0, 4.0, 6.0, 8.0, 10.0), (0.3, 0.4, 0.5)
    )
    for least, most, switch, background in grid:
        yield RegionModel(least, most, switch, background)


class Rule(NamedTuple):
    """A rule that sees few false regions.

    Attributes:
        found: What it finds on train and on planted contigs.
        model: Its numbers.
    """

    found: list[Measured]
    model: RegionModel


def fit_rules(
    joined: list[Contig], planted: list[Contig], must_find: list[Contig], chunk_bp: int
) -> list[Rule]:
    """Return the rules that see few false regions, the best first.

    Args:
        joined: Contigs of chunks of train.
        planted: Contigs of other genomes.
        must_find: Contigs of which a rule must find the virus.
        chunk_bp: The length of a chunk.
    """
    sets = [ContigSet(contigs, chunk_bp) for contigs in (joined, planted)]
    needed = [ContigSet([contig], chunk_bp) for contig in must_find]
    rules = []
    for model in list_rules():
        if not all(one.compare(model)[0].all() for one in needed):
            continue
        found = [one.measure(model) for one in sets]
        limits = zip(found, MAX_FALSE_PER_MB, strict=True)
        if all(one.false_per_mb <= limit for one, limit in limits):
            rules.append(Rule(found, model))
    return sorted(rules, key=lambda rule: -sum(one.worth for one in rule.found))


def main() -> None:
    """Print the best rules, and write a classifier with the best one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, help="directory of the two runs")
    tables: dict[str, Any] = {"type": Path, "nargs": 2, "metavar": ("RUN", "TRUTH")}
    parser.add_argument("--planted", required=True, **tables, help="planted contigs of valid")
    parser.add_argument("--must-find", **tables, help="contigs whose virus a rule must find")
    parser.add_argument("--classifier", type=Path, required=True, help="that of the runs")
    parser.add_argument("--output", type=Path, help="classifier to write")
    parser.add_argument("--num", type=int, default=500, help="contigs of each length, of train")
    args = parser.parse_args()
    state, metadata, changes = read_classifier(args.classifier)
    assert metadata is not None, "its runs have evidence"
    chunk_bp = metadata.chunk_length_bp
    bacteria, phages = (
        [*read_evidence(args.train / kind).values()] for kind in ("bacteria", "phages")
    )
    joined = join_chunks(bacteria, phages, chunk_bp, args.num, seed=0)
    must_find = read_planted(*args.must_find) if args.must_find else []
    rules = fit_rules(joined, read_planted(*args.planted), must_find, chunk_bp)
    assert rules, "each rule sees too many false regions, or misses a virus that must be found"
    print("train\tfalse/Mb\tplanted\tfalse/Mb\tleast\tmost\tswitch\tbackground")
    for found, model in rules[:_NUM_BEST]:
        figures = [f"{np.round(one.found, 3)}\t{one.false_per_mb:.2f}" for one in found]
        print(*figures, model.least, model.most, model.switch, model.background, sep="\t")
    if args.output:
        save_classifier(args.output, state, replace(metadata, regions=rules[0].model), changes)


if __name__ == "__main__":
    main()

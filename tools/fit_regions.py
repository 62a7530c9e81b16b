r"""Fits what finds viral regions: weights that make the evidence of a chunk, and a Markov model.

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
      --classifier virnucpro/data/mini/500_model.safetensors --output fitted.safetensors

The weights tell windows of 40 chunks of phages from such windows of bacteria, by the means of their
embeddings: a logistic regression on train, with several penalties. The logit of each chunk is added
by a share, because the weights know phages alone. With `--log-odds`, there are no weights: that
fits the rule to any classifier with a calibration.

Every rule is measured on two sets of contigs:

- Contigs put together of chunks of train: 200 to 400 of a bacterium, with 20, 40 or 80 of a phage
  among them, and whole bacteria. Train is divided into five folds, and the contigs of each have the
  weights of the other four, which do not know their genomes.
- Contigs of valid, in which phages are really planted.

A line shows which share of the phages of each length a rule finds (overlap of at least 0.5), and
how many false regions of 5 kb or more it sees in a megabase of bacteria, on each set. A rule may
not exceed the limits of false regions, and must find the viruses of `--must-find`: for the small
model, the one of docs/tutorial-assembly.md (a table like truth.tsv: `contig_1`, 8000, 14334). The
best misses the goals by the least on both sets. `--output` writes the classifier with its numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tools.measure_regions import FALSE_BP, MIN_OVERLAP
from virnucpro.backend.arrays import BoolArray, Float64Array
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.reports.tables import read_table
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier_files import read_classifier, save_classifier
from virnucpro.scoring.region_model import RegionModel
from virnucpro.scoring.regions import ChunkEvidence, describe_chunks, find_spans
from virnucpro.sequences.frame_store import FrameStore, open_frame_store

CHUNK_BP = 500
GOALS = {10_000: 0.8, 20_000: 0.9, 40_000: 0.95}
# On train and on planted contigs of valid. The goal is 1. The encoders have seen the bacteria of
# train, so they look less viral.
MAX_FALSE_PER_MB = (0.7, 1.0)
# Chance takes some of the goals on other genomes.
_MARGIN = 0.03
_KINDS = ("bacteria", "phages")
_CONTIG_CHUNKS = (200, 400)
_MARGIN_CHUNKS = 20
_WINDOW_CHUNKS = 40
_STEP_CHUNKS = 5
_NUM_FOLDS = 5
_PENALTIES = (1.0, 3.0, 15.0, 60.0)
_SHARES = (0.3, 0.4, 0.5, 0.6)
# Evidence of any weights gets the spread that the log-odds of bacteria have, so one grid fits all.
_SPREAD = 1.5
_NUM_BEST = 10


class Genome(NamedTuple):
    """The chunks of a genome, C of them.

    Attributes:
        log_odds: float64 (C,), of each chunk; NaN without a score.
        features: float64 (C, Q + P + 1), its DNA embedding, the mean of its protein embeddings, and
            its logit; zeros without a score.
    """

    log_odds: Float64Array
    features: Float64Array


Genomes = dict[str, list[Genome]]
Place = tuple[float, float]
Planted = list[tuple[Genome, Place | None]]


class Contig(NamedTuple):
    """The chunks of a contig.

    Attributes:
        evidence: float64, of each chunk.
        phage: Where its phage begins and ends, in chunks; None if it has no phage.
    """

    evidence: Float64Array
    phage: Place | None


def read_genomes(run: Path) -> list[Genome]:
    """Return the genomes of a finished run."""
    made_for = json.loads((run / "run.json").read_text())["classifier"]["made_for"]
    words = [line["score"] for _, line in read_table(run / "chunks.tsv", ("score",))]
    score = np.array([float(word.replace("NA", "nan")) for word in words])
    evidence = ChunkEvidence(score, Calibration(**made_for["calibration"]))
    log_odds = describe_chunks(evidence, None).evidence
    logit = np.nan_to_num(np.log(score) - np.log1p(-score))
    store = open_frame_store(run / "checkpoints" / "frames")
    features = np.column_stack([_gather(run, store, "dna"), _gather(run, store, "protein"), logit])
    features[np.isnan(score)] = 0
    spans = itertools.pairwise(store.record_first_chunk.tolist())
    return [Genome(log_odds[first:stop], features[first:stop]) for first, stop in spans]


def read_planted(run: Path, truth: Path) -> Planted:
    """Return the contigs of a run that a table names, and where their phages are."""
    rows = {row["record_id"]: row for _, row in read_table(truth, ("record_id", "start", "end"))}
    planted: Planted = []
    records = read_table(run / "records.tsv", ("record_id", "length"))
    for (_, record), genome in zip(records, read_genomes(run), strict=True):
        if row := rows.get(record["record_id"]):
            chunk_bp = int(record["length"]) / len(genome.log_odds)
            ends = (row["start"], row["end"])
            place = None if "-" in ends else (int(ends[0]) / chunk_bp, int(ends[1]) / chunk_bp)
            planted.append((genome, place))
    return planted


def _gather(run: Path, store: FrameStore, kind: str) -> Float64Array:
    """Return the mean embedding of the rows of each chunk; all have its DNA."""
    reader = EmbeddingReader(sorted((run / "checkpoints" / kind).glob("*.h5")))
    rows = reader.gather(np.asarray(store.sequences(kind).representatives))  # type: ignore[arg-type]
    num_rows = np.diff(store.chunk_first_frame)
    sums = np.zeros((store.num_chunks, reader.embedding_dim))
    np.add.at(sums, store.find_chunks(np.arange(store.num_rows)), rows)
    return sums / np.maximum(num_rows, 1)[:, None]


def fit_weights(genomes: Genomes, penalty: float) -> Float64Array:
    """Return the weights of the features, and a constant: those of a logistic regression.

    All bacteria together weigh as much as all phages, and each genome as much as another.
    """
    from sklearn.linear_model import LogisticRegression

    windows, weights, is_phage = [], [], []
    for kind in _KINDS:
        long_enough = [each for each in genomes[kind] if len(each.log_odds) >= _WINDOW_CHUNKS]
        for genome in long_enough:
            starts = range(0, len(genome.log_odds) - _WINDOW_CHUNKS + 1, _STEP_CHUNKS)
            windows += [genome.features[at : at + _WINDOW_CHUNKS, :-1].mean(0) for at in starts]
            weights += [1 / len(starts) / len(long_enough)] * len(starts)
            is_phage += [kind == "phages"] * len(starts)
    inputs = np.array(windows)
    middle, spread = inputs.mean(0), inputs.std(0)
    model = LogisticRegression(C=1 / penalty, max_iter=1000)
    model.fit((inputs - middle) / spread, is_phage, sample_weight=np.array(weights) / 2)
    coefficients = model.coef_[0] / spread
    # The last two are that of the logit and the constant.
    return np.append(coefficients, [0, model.intercept_[0] - coefficients @ middle])


def fit_scaled_weights(genomes: Genomes, penalty: float) -> tuple[float, ...]:
    """Return weights whose evidence has the usual spread in bacteria."""
    weights = fit_weights(genomes, penalty)
    evidence = np.concatenate([weigh(genome, tuple(weights)) for genome in genomes["bacteria"]])
    return tuple(weights * (_SPREAD / np.nanstd(evidence)))


def add_logit(weights: tuple[float, ...], share: float) -> tuple[float, ...]:
    """Return weights that add a share of the logit of a chunk to its evidence, with six digits."""
    added = np.array(weights)
    added[-2] += share
    # The two go together in part, so their sum has less than the sum of their spreads.
    return tuple(float(f"{weight:.6g}") for weight in added / (1 + 0.6 * share))


def weigh(genome: Genome, weights: tuple[float, ...]) -> Float64Array:
    """Return the evidence of the chunks of a genome; without weights, the log-odds."""
    if not weights:
        return genome.log_odds
    evidence = genome.features @ np.array(weights[:-1]) + weights[-1]
    return np.where(np.isnan(genome.log_odds), np.nan, evidence)


def weigh_all(planted: Planted, weights: tuple[float, ...]) -> list[Contig]:
    """Return contigs with their evidence."""
    return [Contig(weigh(genome, weights), place) for genome, place in planted]


def join_chunks(
    bacteria: list[Float64Array], phages: list[Float64Array], num_contigs: int, seed: int
) -> list[Contig]:
    """Return contigs of each length of phage, and all bacteria as they are."""
    rng = np.random.default_rng(seed)
    hosts = [host for host in bacteria if len(host) >= _CONTIG_CHUNKS[0]]
    contigs = []
    for length_bp, _ in itertools.product(GOALS, range(num_contigs)):
        num_chunks = length_bp // CHUNK_BP
        host = hosts[rng.integers(len(hosts))]
        size = int(rng.integers(_CONTIG_CHUNKS[0], min(_CONTIG_CHUNKS[1], len(host)) + 1))
        host = _draw_piece(rng, host, size)
        long_enough = [phage for phage in phages if len(phage) >= num_chunks]
        piece = _draw_piece(rng, long_enough[rng.integers(len(long_enough))], num_chunks)
        start = int(rng.integers(_MARGIN_CHUNKS, size - _MARGIN_CHUNKS + 1))
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
        false_per_mb: False regions in a megabase.
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

    def __init__(self, contigs: list[Contig]) -> None:
        self._evidence = np.concatenate([contig.evidence for contig in contigs])
        self._first = np.cumsum([0, *(len(contig.evidence) for contig in contigs)])
        self._is_host = np.array([contig.phage is None for contig in contigs])
        self._phage = np.array([contig.phage or (0, 0) for contig in contigs])
        self._length_bp = np.rint(np.diff(self._phage)[:, 0] * CHUNK_BP)
        self._phage += self._first[:-1, None]
        self._num_mb = np.diff(self._first)[self._is_host].sum() * CHUNK_BP / 1e6

    def measure(self, model: RegionModel) -> Measured:
        """Return what a rule finds."""
        is_found, num_false = self.compare(model)
        found = [float(is_found[self._length_bp == length_bp].mean()) for length_bp in GOALS]
        return Measured(found, num_false / self._num_mb)

    def compare(self, model: RegionModel) -> tuple[BoolArray, int]:
        """Return whether the phage of each contig is found, and the number of false regions."""
        begin, end = find_spans(self._evidence, self._first, model)
        is_long = (end - begin) * CHUNK_BP >= model.min_length_bp
        begin, end = begin[is_long], end[is_long]
        contig = np.searchsorted(self._first, begin, "right") - 1
        is_false = self._is_host[contig] & ((end - begin) * CHUNK_BP >= FALSE_BP)
        first, stop = self._phage[contig].T
        shared = np.minimum(end, stop) - np.maximum(begin, first)
        overlap = shared / (np.maximum(end, stop) - np.minimum(begin, first))
        best = np.zeros(len(self._is_host))
        np.maximum.at(best, contig, overlap)
        return best >= MIN_OVERLAP, int(is_false.sum())


class Fold(NamedTuple):
    """Genomes of train, and weights that do not know them.

    Attributes:
        genomes: The bacteria and the phages.
        weights: Without a share of the logit; empty for log-odds.
    """

    genomes: Genomes
    weights: tuple[float, ...]

    def plant(self, share: float, num_contigs: int, seed: int) -> list[Contig]:
        """Return contigs with the evidence that the weights and a share of the logit make."""
        weights = add_logit(self.weights, share) if self.weights else ()
        bacteria, phages = ([weigh(one, weights) for one in self.genomes[kind]] for kind in _KINDS)
        return join_chunks(bacteria, phages, num_contigs, seed)


def list_rules(weights: tuple[float, ...]) -> Iterator[RegionModel]:
    """Yield the rules to compare."""
    grid = itertools.product(
        (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (2.0, 3.0), (6.0, 8.0, 10.0), (0.3, 0.4, 0.5)
    )
    for least, most, switch, background in grid:
        yield RegionModel(least, most, switch, background, weights=weights)


class Rule(NamedTuple):
    """A rule that sees few false regions.

    Attributes:
        name: Of its evidence.
        found: What it finds on train and on planted contigs.
        model: Its numbers.
    """

    name: str
    found: list[Measured]
    model: RegionModel


def divide(train: Genomes, penalty: float | None) -> list[Fold]:
    """Return the folds of train; without a penalty, they have no weights.

    `tools.plant_phages` writes the groups in turns, so a group is rarely in two folds.
    """
    folds = []
    for fold in range(_NUM_FOLDS):
        held, others = (
            {
                kind: [one for i, one in enumerate(train[kind]) if (i % _NUM_FOLDS == fold) is held]
                for kind in _KINDS
            }
            for held in (True, False)
        )
        weights = () if penalty is None else fit_scaled_weights(others, penalty)
        folds.append(Fold(held, weights))
    return folds


def fit_rules(
    train: Genomes, planted: Planted, must_find: Planted, use_weights: bool, num: int
) -> list[Rule]:
    """Return the rules that see few false regions, the best first.

    Args:
        train: Genomes that make weights.
        planted: Contigs of other genomes.
        must_find: Contigs of which a rule must find the virus.
        use_weights: Fit weights; else the evidence is the log-odds.
        num: Contigs of each length of phage and of each fold of train.
    """
    rules = []
    for penalty in _PENALTIES if use_weights else (None,):
        folds = divide(train, penalty)
        fitted = () if penalty is None else fit_scaled_weights(train, penalty)
        for share in (0.0,) if penalty is None else _SHARES:
            weights = add_logit(fitted, share) if fitted else ()
            joined = [
                one for seed, fold in enumerate(folds) for one in fold.plant(share, num, seed)
            ]
            sets = [ContigSet(joined), ContigSet(weigh_all(planted, weights))]
            needed = [ContigSet([contig]) for contig in weigh_all(must_find, weights)]
            name = "log-odds" if penalty is None else f"penalty {penalty:.2f}, logit {share}"
            for model in list_rules(weights):
                if not all(one.compare(model)[0].all() for one in needed):
                    continue
                found = [one.measure(model) for one in sets]
                limits = zip(found, MAX_FALSE_PER_MB, strict=True)
                if all(one.false_per_mb <= limit for one, limit in limits):
                    rules.append(Rule(name, found, model))
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
    parser.add_argument("--log-odds", action="store_true", help="no weights")
    parser.add_argument("--num", type=int, default=100, help="contigs of each length and fold")
    args = parser.parse_args()
    state, metadata, changes = read_classifier(args.classifier)
    assert metadata is not None, "its runs have log-odds"
    train = {kind: read_genomes(args.train / kind) for kind in _KINDS}
    planted = read_planted(*args.planted)
    must_find = read_planted(*args.must_find) if args.must_find else []
    rules = fit_rules(train, planted, must_find, not args.log_odds, args.num)
    assert rules, "each rule sees too many false regions, or misses a virus that must be found"
    best_of_name = {rule.name: rule for rule in reversed(rules)}
    print("evidence\ttrain\tfalse/Mb\tplanted\tfalse/Mb\tleast\tmost\tswitch\tbackground")
    for rule in (*rules[:_NUM_BEST], *best_of_name.values()):
        figures = [f"{np.round(one.found, 3)}\t{one.false_per_mb:.2f}" for one in rule.found]
        model = rule.model
        numbers = (model.least, model.most, model.switch, model.background)
        print(rule.name, *figures, *numbers, sep="\t")
    if args.output:
        save_classifier(args.output, state, replace(metadata, regions=rules[0].model), changes)


if __name__ == "__main__":
    main()

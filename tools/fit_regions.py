r"""Fits what finds viral regions: weights that make the evidence of a chunk, and a Markov model.

    python -m tools.plant_phages genomes/index.tsv more/index.tsv --split train --whole \
      --output train                                           # and the same for valid
    virnucpro predict train/bacteria.fasta -m mini -o train/bacteria      # and the other three
    virnucpro predict train/phages.fasta -m mini -o train/phages
    python -m tools.fit_regions --train train --valid valid \
      --classifier virnucpro/data/mini/500_model.safetensors --output fitted.safetensors

The weights tell windows of 40 chunks of phages from such windows of bacteria, by the means of their
embeddings: a logistic regression on train, with several penalties. Then contigs are put together of
chunks: 200 to 400 of a bacterium, with 20, 40 or 80 of a phage among them. That takes no model, so
thousands of rules can be compared. A line shows which share of the phages a rule finds (overlap of
at least 0.5) and how many false regions of 5 kb or more it sees in a megabase of the bacteria, on
train and on valid. The rules have at most one false region in a megabase on both. The best is the
one that misses the goals on both by the least. `--output` writes the classifier with its numbers.

The weights know phages alone. So the logit of each chunk is added, by a share that is chosen
together with the final rule, on a run over contigs of `tools.plant_phages`:

    virnucpro predict planted/contigs.fasta -p fitted.safetensors -o planted/run \
      --dna-weights virnucpro/data/mini/dnabert_s --protein-weights virnucpro/data/mini/esm2
    python -m tools.fit_regions --planted planted/run --truth planted/truth.tsv \
      --classifier fitted.safetensors --output virnucpro/data/mini/500_model.safetensors

With `--log-odds`, there are no weights: that fits the rule to any classifier with a calibration.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.measure_regions import FALSE_BP, MIN_OVERLAP, Span
from virnucpro.backend.arrays import Float64Array
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.reports.tables import read_table
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier_files import read_classifier, save_classifier
from virnucpro.scoring.region_model import RegionModel
from virnucpro.scoring.regions import ChunkEvidence, describe_chunks, find_spans
from virnucpro.sequences.frame_store import FrameStore, open_frame_store

CHUNK_BP = 500
GOALS = {10_000: 0.8, 20_000: 0.9, 40_000: 0.95}
MAX_FALSE_PER_MB = 1.0
_KINDS = ("bacteria", "phages")
_CONTIG_CHUNKS = (200, 400)
_MARGIN_CHUNKS = 20
_WINDOW_CHUNKS = 40
_STEP_CHUNKS = 5
_PENALTIES = (1 / 15, 1 / 50, 1 / 150, 1 / 500)
_SHARES = (0.4, 0.5, 0.6, 0.8)
# Evidence of any weights gets the spread that the log-odds of bacteria have, so one grid fits all.
_SPREAD = 1.5
# A little more than the goals: chance takes some of it on other genomes.
_MARGIN = 0.03
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


class Contig(NamedTuple):
    """The chunks of a contig.

    Attributes:
        evidence: float64, of each chunk.
        phage: The first chunk of its phage and the chunk behind it; None if it has no phage.
    """

    evidence: Float64Array
    phage: Span | None


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


def _gather(run: Path, store: FrameStore, kind: str) -> Float64Array:
    """Return the mean embedding of the rows of each chunk; all have its DNA."""
    reader = EmbeddingReader(sorted((run / "checkpoints" / kind).glob("*.h5")))
    rows = reader.gather(np.asarray(store.sequences(kind).representatives))  # type: ignore[arg-type]
    num_rows = np.diff(store.chunk_first_frame)
    sums = np.zeros((store.num_chunks, reader.embedding_dim))
    np.add.at(sums, store.find_chunks(np.arange(store.num_rows)), rows)
    return sums / np.maximum(num_rows, 1)[:, None]


def fit_weights(genomes: dict[str, list[Genome]], penalty: float) -> Float64Array:
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


def scale_weights(weights: Float64Array, bacteria: list[Genome]) -> tuple[float, ...]:
    """Return weights whose evidence has the usual spread in bacteria, with six digits."""
    evidence = np.concatenate([weigh(genome, tuple(weights)) for genome in bacteria])
    return _round_weights(weights * (_SPREAD / np.nanstd(evidence)))


def add_logit(weights: tuple[float, ...], share: float) -> tuple[float, ...]:
    """Return weights that add a share of the logit of a chunk to its evidence."""
    added = np.array(weights)
    added[-2] += share
    return _round_weights(added / _scale(share))


def _scale(share: float) -> float:
    # The two go together in part, so their sum has less than the sum of their spreads.
    return 1 + 0.6 * share


def _round_weights(weights: Float64Array) -> tuple[float, ...]:
    return tuple(float(f"{weight:.6g}") for weight in weights)


def weigh(genome: Genome, weights: tuple[float, ...]) -> Float64Array:
    """Return the evidence of the chunks of a genome; without weights, the log-odds."""
    if not weights:
        return genome.log_odds
    evidence = genome.features @ np.array(weights[:-1]) + weights[-1]
    return np.where(np.isnan(genome.log_odds), np.nan, evidence)


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
        size = rng.integers(_CONTIG_CHUNKS[0], min(_CONTIG_CHUNKS[1], len(host)) + 1)
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
        self._phage += self._first[:-1, None]
        self._length_bp = np.diff(self._phage)[:, 0] * CHUNK_BP
        self._num_mb = np.diff(self._first)[self._is_host].sum() * CHUNK_BP / 1e6

    def measure(self, model: RegionModel) -> Measured:
        """Return what a rule finds."""
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
        found = [
            float((best[self._length_bp == length_bp] >= MIN_OVERLAP).mean()) for length_bp in GOALS
        ]
        return Measured(found, float(is_false.sum() / self._num_mb))


def make_contigs(
    genomes: dict[str, list[Genome]], weights: tuple[float, ...], num_contigs: int, seed: int
) -> ContigSet:
    """Return contigs with the evidence that weights make."""
    bacteria, phages = ([weigh(each, weights) for each in genomes[kind]] for kind in _KINDS)
    return ContigSet(join_chunks(bacteria, phages, num_contigs, seed))


def list_rules(weights: tuple[float, ...]) -> Iterator[RegionModel]:
    """Yield the rules to compare."""
    grid = itertools.product(
        (-0.9, -0.6, -0.4, -0.2, 0.0, 0.2),
        (2.0, 3.0),
        (4.0, 6.0, 8.0),
        (0.0, 1.2, 1.4, 1.6, 1.8, 1.9, 2.0, 2.2),
    )
    for least, most, switch, contrast in grid:
        yield RegionModel(least, most, switch, contrast, weights=weights)


class Rule(NamedTuple):
    """A rule that sees few false regions.

    Attributes:
        worth: How little of the goals it misses.
        name: Of its weights.
        found: What it finds in each set of contigs.
        model: Its numbers.
    """

    worth: float
    name: str
    found: list[Measured]
    model: RegionModel


def compare_rules(name: str, sets: list[ContigSet], weights: tuple[float, ...]) -> list[Rule]:
    """Return the rules with these weights that see few false regions in all sets."""
    rules = []
    for model in list_rules(weights):
        found = [each.measure(model) for each in sets]
        if max(one.false_per_mb for one in found) <= MAX_FALSE_PER_MB:
            rules.append(Rule(sum(one.worth for one in found), name, found, model))
    return rules


def fit_rules(args: argparse.Namespace) -> list[Rule]:
    """Return the rules with weights of each penalty, and those of log-odds."""
    train, valid = (
        {kind: read_genomes(directory / kind) for kind in _KINDS}
        for directory in (args.train, args.valid)
    )
    heads: dict[str, tuple[float, ...]] = {"log-odds": ()}
    for penalty in () if args.log_odds else _PENALTIES:
        weights = scale_weights(fit_weights(train, penalty), train["bacteria"])
        heads[f"penalty {penalty:.3f}"] = weights
    rules = []
    for name, weights in heads.items():
        sets = [make_contigs(genomes, weights, args.num, args.seed) for genomes in (train, valid)]
        rules += compare_rules(name, sets, weights)
    return rules


def choose_rules(args: argparse.Namespace, weights: tuple[float, ...]) -> list[Rule]:
    """Return the rules with each share of the logit, on planted contigs."""
    chunks: dict[str, list[tuple[float, float]]] = {}
    for _, line in read_table(args.planted / "chunks.tsv", ("record_id", "score", "evidence")):
        words = (line["score"], line["evidence"])
        score, evidence = (float(word.replace("NA", "nan")) for word in words)
        chunks.setdefault(line["record_id"], []).append((score, evidence))
    phages: dict[str, Span | None] = {
        line["record_id"]: None
        if line["phage"] == "-"
        else (round(int(line["start"]) / CHUNK_BP), round(int(line["end"]) / CHUNK_BP))
        for _, line in read_table(args.truth, ("record_id", "start", "end", "phage"))
    }
    rules = []
    for share in _SHARES:
        contigs = []
        for name, phage in phages.items():
            score, evidence = np.array(chunks[name]).T
            logit = np.log(score) - np.log1p(-score)
            contigs.append(Contig((evidence + share * logit) / _scale(share), phage))
        rules += compare_rules(f"logit {share}", [ContigSet(contigs)], add_logit(weights, share))
    return rules


def main() -> None:
    """Print the best rules, and write a classifier with the best one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, help="directory of the two runs")
    parser.add_argument("--valid", type=Path, help="the same for valid")
    parser.add_argument("--planted", type=Path, help="run over planted contigs of valid")
    parser.add_argument("--truth", type=Path, help="where their phages are")
    parser.add_argument("--classifier", type=Path, required=True, help="that of the runs")
    parser.add_argument("--output", type=Path, help="classifier to write")
    parser.add_argument("--log-odds", action="store_true", help="no weights")
    parser.add_argument("--num", type=int, default=150, help="contigs of each length of phage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    state, metadata, changes = read_classifier(args.classifier)
    assert metadata is not None, "its runs have log-odds"
    if args.planted:
        assert metadata.regions is not None, "a first fit made its weights"
        rules = choose_rules(args, metadata.regions.weights)
    else:
        rules = fit_rules(args)
    rules.sort(key=lambda rule: -rule.worth)
    best_of_name = {rule.name: rule for rule in reversed(rules)}
    print("evidence\tfound\tfalse/Mb\t...\tleast\tmost\tswitch\tcontrast")
    for rule in (*rules[:_NUM_BEST], *best_of_name.values()):
        figures = [f"{np.round(one.found, 3)}\t{one.false_per_mb:.2f}" for one in rule.found]
        model = rule.model
        print(rule.name, *figures, model.least, model.most, model.switch, model.contrast, sep="\t")
    if args.output:
        finished = replace(metadata, regions=rules[0].model)
        save_classifier(args.output, state, finished, changes)


if __name__ == "__main__":
    main()

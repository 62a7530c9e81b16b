"""Fits the numbers of the hidden Markov model that finds viral regions.

    virnucpro predict bacteria.fasta -m mini -o bacteria
    virnucpro predict phages.fasta -m mini -o phages
    python -m tools.fit_regions --bacteria bacteria --phages phages

Both inputs are whole genomes of the train split. Contigs are put together of scored chunks: 200 to
400 of a bacterium, with 20, 40 or 80 of a phage among them. That takes no model, so thousands of
rules can be compared. Each line shows a rule, which share of the phages it finds (overlap of at
least 0.5), and how many false regions of 5 kb or more it sees in a megabase of the bacteria. The
best rules of each bound on false regions come first: those that miss the goals by the least.

With `--truth`, the rules are compared on one run over contigs that `tools.plant_phages` made:

    python -m tools.fit_regions --planted planted/run --truth planted/truth.tsv
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.measure_regions import FALSE_BP, MIN_OVERLAP, Span, match
from virnucpro.backend.arrays import Float64Array
from virnucpro.reports.tables import read_table
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.regions import REGION_MODEL, RegionModel, describe_chunks, find_spans

CHUNK_BP = 500
GOALS = {10_000: 0.8, 20_000: 0.9, 40_000: 0.95}
FALSE_PER_MB = (0.3, 0.6, 1.0)
_CONTIG_CHUNKS = (200, 400)
_MARGIN_CHUNKS = 20
_NUM_BEST = 5


class Contig(NamedTuple):
    """The chunks of a contig.

    Attributes:
        log_odds: float64, of each chunk.
        phage: The first chunk of its phage and the chunk behind it; None if it has no phage.
    """

    log_odds: Float64Array
    phage: Span | None


def read_log_odds(run: Path) -> dict[str, Float64Array]:
    """Return the log-odds of the chunks of each record of a run."""
    made_for = json.loads((run / "run.json").read_text())["classifier"]["made_for"]
    scores: dict[str, list[float]] = {}
    for _, line in read_table(run / "chunks.tsv", ("record_id", "score")):
        scores.setdefault(line["record_id"], []).append(float(line["score"].replace("NA", "nan")))
    calibration = Calibration(**made_for["calibration"])
    return {
        name: describe_chunks(np.array(each), calibration, None).log_odds
        for name, each in scores.items()
    }


def join_chunks(
    bacteria: list[Float64Array], phages: list[Float64Array], num_contigs: int, seed: int
) -> list[Contig]:
    """Return contigs of each length of phage, and all bacteria as they are."""
    rng = np.random.default_rng(seed)
    contigs = []
    for length_bp, _ in itertools.product(GOALS, range(num_contigs)):
        num_chunks = length_bp // CHUNK_BP
        host = bacteria[rng.integers(len(bacteria))]
        size = rng.integers(_CONTIG_CHUNKS[0], min(_CONTIG_CHUNKS[1], len(host)) + 1)
        host = _draw_piece(rng, host, size)
        long_enough = [phage for phage in phages if len(phage) >= num_chunks]
        piece = _draw_piece(rng, long_enough[rng.integers(len(long_enough))], num_chunks)
        start = int(rng.integers(_MARGIN_CHUNKS, size - _MARGIN_CHUNKS + 1))
        log_odds = np.concatenate([host[:start], piece, host[start:]])
        contigs.append(Contig(log_odds, (start, start + num_chunks)))
    return contigs + [Contig(each, None) for each in bacteria]


def _draw_piece(rng: np.random.Generator, chunks: Float64Array, size: int) -> Float64Array:
    start = rng.integers(len(chunks) - size + 1)
    return chunks[start : start + size]


def read_planted(run: Path, truth: Path) -> list[Contig]:
    """Return the contigs of `tools.plant_phages`, with phages in whole chunks."""
    log_odds = read_log_odds(run)
    return [
        Contig(
            log_odds[line["record_id"]],
            None
            if line["phage"] == "-"
            else (round(int(line["start"]) / CHUNK_BP), round(int(line["end"]) / CHUNK_BP)),
        )
        for _, line in read_table(truth, ("record_id", "start", "end", "phage"))
    ]


def measure(contigs: list[Contig], model: RegionModel) -> tuple[list[float], float]:
    """Return which share of the phages of each length is found, and false regions per Mb."""
    first = np.cumsum([0, *(len(contig.log_odds) for contig in contigs)])
    begin, end = find_spans(np.concatenate([contig.log_odds for contig in contigs]), first, model)
    is_long = (end - begin) * CHUNK_BP >= model.min_length_bp
    spans: list[list[Span]] = [[] for _ in contigs]
    number = np.searchsorted(first, begin, "right") - 1
    for index, low, high in zip(number[is_long], begin[is_long], end[is_long], strict=True):
        spans[index].append((int(low - first[index]), int(high - first[index])))
    found: dict[int, list[bool]] = {length: [] for length in GOALS}
    num_false, num_bp = 0, 0
    for contig, regions in zip(contigs, spans, strict=True):
        if contig.phage is None:
            num_bp += len(contig.log_odds) * CHUNK_BP
            num_false += sum((end - begin) * CHUNK_BP >= FALSE_BP for begin, end in regions)
        else:
            length_bp = (contig.phage[1] - contig.phage[0]) * CHUNK_BP
            found[length_bp].append(match(contig.phage, regions)[0] >= MIN_OVERLAP)
    return [float(np.mean(each)) for each in found.values()], num_false / num_bp * 1e6


def main() -> None:
    """Print the best rules of each bound on false regions, and the present one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bacteria", type=Path, help="run over bacteria")
    parser.add_argument("--phages", type=Path, help="run over phages")
    parser.add_argument("--planted", type=Path, help="run over contigs with planted phages")
    parser.add_argument("--truth", type=Path, help="where these phages are")
    parser.add_argument("--num", type=int, default=200, help="contigs of each length of phage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.planted:
        contigs = read_planted(args.planted, args.truth)
    else:
        bacteria, phages = (
            list(read_log_odds(run).values()) for run in (args.bacteria, args.phages)
        )
        contigs = join_chunks(bacteria, phages, args.num, args.seed)
    grid = itertools.product(
        (-0.4, -0.2, 0.0, 0.2),
        (2.0, 3.0, 4.0),
        (4.0, 5.0, 6.0, 8.0),
        (0.0, 1.4, 1.6, 1.8, 1.9, 2.0, 2.2),
    )
    models = [REGION_MODEL, *(RegionModel(*numbers) for numbers in grid)]
    figures = [(*measure(contigs, model), model) for model in models]
    goals = list(GOALS.values())
    print("false/Mb\tfound\tmodel")
    for bound in FALSE_PER_MB:
        kept = [each for each in figures if each[1] <= bound]
        kept.sort(key=lambda each: -np.minimum(each[0], goals).sum())
        for found, num_false, model in kept[:_NUM_BEST]:
            print(f"{num_false:.2f}\t{np.round(found, 3)}\t{model}")
    found, num_false, model = figures[0]
    print(f"{num_false:.2f}\t{np.round(found, 3)}\t{model} (present)")


if __name__ == "__main__":
    main()

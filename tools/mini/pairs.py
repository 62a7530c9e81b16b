"""Prints what calling the mates of read pairs together gives.

    python -m tools.mini.pairs valid.npz --output pairs

Fragments are drawn from packed genomes, as many of every kind. The first read of a fragment is its
start, and the second read is the reverse complement of its end. The small model calls the first
reads alone, the pairs together, and the fragments as a whole.

Records without a call rank last under `all`, and are left out under `called`. `virus` is the share
of viral records that are called viral, and `wrong` the share of the others. The intervals (95 %)
are those of a bootstrap over groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools.mini.genomes import read_genomes
from tools.mini.records import DrawnRecords, draw_records, make_predictions, read_calls
from virnucpro import PredictConfig, predict
from virnucpro.cli.terminal import format_table
from virnucpro.reports.metrics import Estimate, estimate_metrics, measure_metrics

CHUNK_LENGTH_BP = 300
HEADINGS = ("records", "called", "AUROC all", "AUROC called", "virus", "wrong", "calibration error")

_LETTERS = np.frombuffer(b"ACGTN", np.uint8)
_COMPLEMENT = np.array([3, 2, 1, 0, 4], np.uint8)


def write_reads(path: Path, codes_NL: npt.NDArray[np.uint8]) -> Path:
    """Write the reads as FASTA, and return the path."""
    with path.open("wb") as file:
        for number, codes_L in enumerate(codes_NL):
            file.write(b">pair_%d\n%s\n" % (number, _LETTERS[codes_L].tobytes()))
    return path


def measure(records: DrawnRecords, inputs: list[Path], directory: Path) -> list[str]:
    """Return the cells of one way of calling; two inputs are pairs."""
    predict(
        PredictConfig(
            inputs=tuple(map(str, inputs)),
            output_dir=directory,
            model_type="mini",
            chunk_length_bp=CHUNK_LENGTH_BP,
            paired=len(inputs) == 2,
            precision="fp32",
            force=True,
        )
    )
    called = read_calls(directory)
    predictions = make_predictions(records, called)
    found = estimate_metrics(predictions)
    among_called = measure_metrics(predictions.select(predictions.score >= 0))
    return [
        f"{called.has_call.mean():.3f}",
        _format(found["auroc"]),
        f"{among_called['auroc']:.3f}",
        _format(found["recall"]),
        f"{1 - found['specificity'].value:.3f}",
        f"{found['calibration_error'].value:.3f}",
    ]


def _format(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, nargs="+", help="packed")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--output", type=Path, required=True, help="for reads and runs")
    parser.add_argument("--read-length", type=int, default=150, metavar="BP")
    parser.add_argument("--fragment-length", type=int, default=400, metavar="BP")
    parser.add_argument("--num-of-kind", type=int, default=500, help="fragments")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    genomes = read_genomes(args.genomes, args.split)
    records = draw_records(genomes, args.fragment_length, args.num_of_kind, args.seed)
    codes_NL = records.codes_NL.numpy()
    first = write_reads(args.output / "reads_1.fasta", codes_NL[:, : args.read_length])
    second_NL = _COMPLEMENT[codes_NL[:, : -args.read_length - 1 : -1]]
    second = write_reads(args.output / "reads_2.fasta", second_NL)
    whole = write_reads(args.output / "fragments.fasta", codes_NL)
    ways = {
        f"first reads of {args.read_length} bp": [first],
        f"pairs of 2 x {args.read_length} bp": [first, second],
        f"fragments of {args.fragment_length} bp": [whole],
    }
    lines = [
        [name, *measure(records, inputs, args.output / f"run_{number}")]
        for number, (name, inputs) in enumerate(ways.items())
    ]
    print(format_table(HEADINGS, lines, 1))


if __name__ == "__main__":
    main()

"""Prints how often calls of each confidence are right, by the length of the record.

A viral record and another count alike in the last column, whatever their numbers.

python -m tools.measure_confidence results labels.tsv
python -m tools.measure_confidence results labels.tsv --lengths 400 800 2000
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from virnucpro.cli.terminal import format_table
from virnucpro.reports.labels import read_truth
from virnucpro.reports.tables import read_table
from virnucpro.scoring.decisions import CONFIDENCE_TIERS

LENGTHS_BP = (400, 750, 2000, 6000)
"""Between the lengths that the small model is measured at: 300, 500, 1,000, 3,000, 10,000 bp."""

HEADINGS = (
    *("length", "confidence"),
    *("called virus", "right", "called others", "right", "mean of both"),
)


def measure(run: Path, truth: Path, lengths_bp: Sequence[int]) -> Iterator[list[str]]:
    """Yield the lines of the table: for all lengths, then for each range of lengths.

    Args:
        run: The output directory of predict.
        truth: A table with the columns id and label.
        lengths_bp: Where a range of lengths ends and the next begins.
    """
    known = read_truth(truth)
    counts: Counter[tuple[str, str, str, bool]] = Counter()
    for _, row in read_table(run / "records.tsv", ("record_id", "length", "call", "confidence")):
        label = known.get(row["record_id"])
        if label is None or row["call"] == "none":
            continue
        is_right = (row["call"] == "virus") == label.is_viral
        for name in ("all", _name_range(int(row["length"]), lengths_bp)):
            counts[name, row["confidence"], row["call"], is_right] += 1
    ranges = [_name_range(length, lengths_bp) for length in (0, *lengths_bp)]
    for name in ("all", *ranges):
        for tier in reversed(CONFIDENCE_TIERS):
            cells, shares = [], []
            for call in ("virus", "others"):
                right, wrong = (counts[name, tier, call, is_right] for is_right in (True, False))
                if right + wrong:
                    shares.append(right / (right + wrong))
                cells += [f"{right + wrong:,}", f"{shares[-1]:.3f}" if right + wrong else "-"]
            if shares:
                yield [name, tier, *cells, f"{sum(shares) / len(shares):.3f}"]


def _name_range(length_bp: int, lengths_bp: Sequence[int]) -> str:
    low = max((edge for edge in lengths_bp if edge <= length_bp), default=0)
    high = min((edge for edge in lengths_bp if edge > length_bp), default=None)
    return f"{low}+" if high is None else f"{low}-{high - 1}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the output directory of virnucpro predict")
    parser.add_argument("labels", type=Path, help="a table with the columns id and label")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    args = parser.parse_args()
    print(format_table(HEADINGS, list(measure(args.run, args.labels, sorted(args.lengths))), 2))


if __name__ == "__main__":
    main()

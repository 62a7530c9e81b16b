"""Draws the same number of records from each of several sequence files, for runs of a known size.

python -m tools.sample_records viral.fa.gz bacteria.fa.gz -n 300 --max-length 20000 > sample.fa
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys

from virnucpro.fasta import RecordReader
from virnucpro.records import Record


def sample_records(path: str, num_records: int, seed: int) -> list[Record]:
    """Return `num_records` records of one file, drawn at random, in the file's order."""
    rng = random.Random(seed)
    # The records with the largest random numbers: one pass, without knowing how many there are.
    drawn = heapq.nlargest(
        num_records,
        ((rng.random(), index, record) for index, record in enumerate(RecordReader(path, "dna"))),
    )
    return [record for _, _, record in sorted(drawn, key=lambda item: item[1])]


def main() -> None:
    """Print the sample as FASTA."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("-n", "--num-records", type=int, default=300, help="from each file")
    parser.add_argument("--max-length", type=int, default=20_000, help="longer ones are cut, in bp")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in args.files:
        for record in sample_records(path, args.num_records, args.seed):
            sys.stdout.write(f">{record.header}\n{record.sequence[: args.max_length]}\n")


if __name__ == "__main__":
    main()

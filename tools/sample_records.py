"""Draws the same number of records from each of several sequence files.

python -m tools.sample_records viral.fa.gz bacteria.fa.gz -n 300 --max-length 20000 > sample.fa
"""

from __future__ import annotations

import argparse
import sys

from virnucpro.sequences.sampling import sample_records


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
    # A header may have bytes that are no UTF-8, and comes out as it was read.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    for path in args.files:
        records, _ = sample_records([path], args.num_records, args.seed)
        for record in records:
            sys.stdout.write(f">{record.header}\n{record.sequence[: args.max_length]}\n")


if __name__ == "__main__":
    main()

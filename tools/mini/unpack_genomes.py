"""Writes packed genomes as FASTA: long inputs for measurements.

    python -m tools.mini.unpack_genomes train_1.npz train_2.npz --mb 228 > genomes.fa

The sequences come in random order, cut at 40 kb. When all are written, they follow again from
another base on, so that their chunks are others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tools.mini.genomes import Genomes, read_genomes

MAX_RECORD_BP = 40_000
MIN_RECORD_BP = 300
_SHIFTS_BP = (0, 250, 125, 375)
_LETTERS = np.frombuffer(b"ACGTN", np.uint8)


def cut_records(genomes: Genomes, num_bases: int) -> Iterator[tuple[str, bytes]]:
    """Yield the id and the letters of records, `num_bases` in all or four times the genomes."""
    codes_N, start_S, length_S = (
        tensor.numpy() for tensor in (genomes.codes_N, genomes.start_S, genomes.length_S)
    )
    left = num_bases
    for shift in _SHIFTS_BP:
        for number in np.random.default_rng(shift).permutation(len(length_S)).tolist():
            for first in range(shift, int(length_S[number]), MAX_RECORD_BP):
                size = min(MAX_RECORD_BP, int(length_S[number]) - first, left)
                if left < MIN_RECORD_BP:
                    return
                if size >= MIN_RECORD_BP:
                    at = int(start_S[number]) + first
                    yield f"s{number}_{first}", _LETTERS[codes_N[at : at + size]].tobytes()
                    left -= size


def main() -> None:
    """Print the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, nargs="+", help="of tools.mini.pack_genomes")
    parser.add_argument("--mb", type=float, required=True, help="million bases to write")
    parser.add_argument("--split", default="train")
    args = parser.parse_args()
    genomes = read_genomes(args.genomes, args.split)
    for record_id, letters in cut_records(genomes, round(args.mb * 1e6)):
        sys.stdout.buffer.write(b">%s\n%s\n" % (record_id.encode(), letters))


if __name__ == "__main__":
    main()

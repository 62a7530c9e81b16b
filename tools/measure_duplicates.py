"""Counts how many open frames repeat another one. A run embeds each distinct frame once.

python -m tools.measure_duplicates viral.fa.gz bacteria.fa.gz
python -m tools.measure_duplicates viral.fa.gz --reads 1000000 --chunk-length 300
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store
from virnucpro.sequences.frames import reverse_complement

BASES = np.frombuffer(b"ACGT", np.uint8)


def simulate_reads(
    genomes: Sequence[bytes], num_reads: int, length_bp: int, error_rate: float, seed: int
) -> Iterator[bytes]:
    """Yield reads from random places of both strands.

    A genome gives reads in proportion to its length, as if there were equally many copies of each.
    With the probability `error_rate` a base is redrawn from all four, so three in four of these
    bases are wrong.
    """
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(b"".join(genomes), np.uint8)
    num_letters = np.array([len(genome) for genome in genomes])
    num_places = np.maximum(0, num_letters - length_bp + 1)
    last_place = np.cumsum(num_places)
    places = rng.integers(0, last_place[-1], num_reads)
    genome = np.searchsorted(last_place, places, "right")
    starts = (
        places - (last_place - num_places)[genome] + (np.cumsum(num_letters) - num_letters)[genome]
    )
    for start, is_reverse in zip(starts.tolist(), rng.random(num_reads) < 0.5, strict=True):
        read = letters[start : start + length_bp].copy()
        wrong = np.flatnonzero(rng.random(length_bp) < error_rate)
        read[wrong] = BASES[rng.integers(0, 4, len(wrong))]
        yield reverse_complement(read.tobytes()) if is_reverse else read.tobytes()


def write_reads(path: Path, reads: Iterator[bytes]) -> None:
    """Write reads as FASTA."""
    with path.open("wb") as file:
        file.writelines(b">read_%d\n%s\n" % (number, read) for number, read in enumerate(reads))


def describe(store: FrameStore) -> str:
    """Return a line with the number of open frames, and for each kind the share that is saved."""
    text = f"{store.num_records:,} records, {store.num_rows:,} open frames"
    for kind in ("dna", "protein"):
        num_distinct = store.num_distinct(kind)
        text += (
            f"; {kind}: {num_distinct:,} distinct, {1 - num_distinct / store.num_rows:.2%} saved"
        )
    return text


def main() -> None:
    """Print the counts of the files or of the simulated reads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--chunk-length", type=int, default=500, help="in bp")
    parser.add_argument(
        "--reads", type=int, help="simulate this many reads, instead of whole records"
    )
    parser.add_argument("--read-length", type=int, default=150, help="in bp")
    parser.add_argument(
        "--error-rate", type=float, default=0.0, help="share of bases that are redrawn"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        inputs = args.files
        if args.reads is not None:
            genomes = [
                record.sequence.encode("ascii")
                for path in args.files
                for record in RecordReader(path, "dna")
            ]
            reads = simulate_reads(
                genomes, args.reads, args.read_length, args.error_rate, args.seed
            )
            inputs = [str(Path(scratch, "reads.fasta"))]
            write_reads(Path(inputs[0]), reads)
        store = build_frame_store(inputs, Path(scratch, "frames"), StoreSettings(args.chunk_length))
        print(describe(store))


if __name__ == "__main__":
    main()

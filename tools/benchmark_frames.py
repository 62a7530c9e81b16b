"""Measures on one core how fast sequences are read, cut into chunks, translated and stored.

    OMP_NUM_THREADS=1 python -m tools.benchmark_frames

The sequences are random: reads of 150 bp and contigs of 20 kb. The rates are megabytes of sequence
letters a second of processor time, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dnaio
import numpy as np
import numpy.typing as npt

from virnucpro.backend.digests import digest_files
from virnucpro.sequences import frames
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frame_store import FrameStore, build_frame_store

CHUNK_LENGTH_BP = 500
BLOCK_BP = 1 << 18
ROWS_AT_A_TIME = 1 << 12


def make_letters(num_letters: int) -> bytes:
    """Return random bases, always the same."""
    rng = np.random.default_rng(0)
    bases: npt.NDArray[np.uint8] = np.frombuffer(b"ACGT", np.uint8)
    return bytes(bases[rng.integers(0, 4, num_letters, np.uint8)])


def find_frames(letters: bytes, record_length_bp: int) -> None:
    """Cut and translate `letters`, read as records of one length, in blocks as the store does."""
    block_bp = BLOCK_BP // record_length_bp * record_length_bp
    for begin in range(0, len(letters), block_bp):
        block = letters[begin : begin + block_bp]
        record_length = np.full(len(block) // record_length_bp, record_length_bp)
        chunks = frames.cut_records(record_length, CHUNK_LENGTH_BP)
        frames.find_open_frames(block, chunks.start, chunks.length)


def write_records(path: Path, letters: bytes, record_length_bp: int) -> None:
    """Write `letters` as records of one length, in FASTA or FASTQ as the name says."""
    with path.open("wb") as file:
        for number, begin in enumerate(range(0, len(letters), record_length_bp)):
            sequence = letters[begin : begin + record_length_bp]
            if path.suffix == ".fa":
                file.write(b">r%d\n%b\n" % (number, sequence))
            else:
                file.write(b"@r%d\n%b\n+\n%b\n" % (number, sequence, b"F" * len(sequence)))


def read_with_dnaio(path: Path) -> None:
    """Read a file's records by dnaio alone: no digest, and no check of the letters."""
    with dnaio.open(path) as records:
        for _ in records:
            pass


def read_records(path: Path) -> None:
    """Read a file's records to the end."""
    for _ in RecordReader(path, "dna"):
        pass


def read_frames(store: FrameStore) -> None:
    """Read the DNA and protein of every open frame."""
    for kind in ("dna", "protein"):
        source = store.sequences(kind)
        for start in range(0, len(source), ROWS_AT_A_TIME):
            source.get_many(range(start, min(start + ROWS_AT_A_TIME, len(source))))


def report(what: str, num_letters: int, work: Callable[[], object]) -> None:
    """Do `work` and print its rate by processor time, its wall time, and the peak memory so far."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = num_letters / 1e6 / cpu_seconds
    print(f"  {what:<34} {rate:8.1f} MB/s {seconds:8.2f} s   peak memory {peak_mib:6.0f} MiB")


def benchmark(record_length_bp: int, num_letters: int, directory: Path) -> None:
    """Measure all stages on records of one length."""
    num_records = num_letters // record_length_bp
    letters = make_letters(num_records * record_length_bp)
    size = len(letters)
    print(f"{num_records} records of {record_length_bp} bp")
    report("chunks and six frames", size, lambda: find_frames(letters, record_length_bp))
    fasta = directory / f"{record_length_bp}.fa"
    write_records(fasta, letters, record_length_bp)
    report("reading FASTA", size, lambda: read_records(fasta))
    fastq = directory / f"{record_length_bp}.fq"
    write_records(fastq, letters, record_length_bp)
    report("digest of FASTQ alone", size, lambda: digest_files([fastq], anew=True))
    report("reading FASTQ by dnaio alone", size, lambda: read_with_dnaio(fastq))
    report("reading FASTQ", size, lambda: read_records(fastq))
    # dnaio refuses the blank line at the start, so Biopython reads the records.
    fastq.write_bytes(b"\n" + fastq.read_bytes())
    report("reading FASTQ with a blank line", size, lambda: read_records(fastq))
    target = directory / f"store_{record_length_bp}"
    stores: list[FrameStore] = []
    report(
        "FASTA to frame store",
        size,
        lambda: stores.append(
            build_frame_store([str(fasta)], target, chunk_length_bp=CHUNK_LENGTH_BP)
        ),
    )
    print(f"  {stores[0].num_frames} open frames")
    report("reading every frame back", size, lambda: read_frames(stores[0]))


def main() -> None:
    """Print the rates of all stages, for reads and for contigs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64, help="sequence letters of each shape")
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for record_length_bp in (150, 20_000):
            benchmark(record_length_bp, options.megabytes * 1_000_000, Path(scratch))


if __name__ == "__main__":
    main()

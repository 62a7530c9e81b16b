"""Measures the resident memory of a process over millions of reads, without the models.

It writes random reads to a temporary FASTA file. One child process builds the frame store. Another
plans the batches of both passes and fetches their sequences, as every process of a run does.

    python -m tools.measure_rank_memory
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_LENGTH_BP = 300


def write_reads(path: Path, num_reads: int, length_bp: int) -> None:
    """Write random reads, one line each."""
    rng = np.random.default_rng(0)
    bases = np.frombuffer(b"ACGT", np.uint8)
    with path.open("wb") as file:
        for start in range(0, num_reads, 100_000):
            count = min(100_000, num_reads - start)
            letters = bases[rng.integers(0, 4, (count, length_bp), np.uint8)]
            reads = (
                b">read_%d\n%s\n" % (start + i, read.tobytes()) for i, read in enumerate(letters)
            )
            file.write(b"".join(reads))


def build(path: Path, directory: Path) -> str:
    """Build the frame store, and return what is in it."""
    from virnucpro.sequences.frame_store import StoreSettings, build_frame_store

    store = build_frame_store([str(path)], directory, StoreSettings(CHUNK_LENGTH_BP))
    return f"{store.num_records} records, {store.num_rows} open frames"


def plan(path: Path, directory: Path) -> str:
    """Plan the batches of both passes and fetch every sequence once, batch by batch."""
    from virnucpro.backend.registry import load_backend
    from virnucpro.embedding.batches import measure_costs, plan_batches, unique_rows
    from virnucpro.sequences.frame_store import open_frame_store

    store = open_frame_store(directory)
    num_batches = 0
    for backend, kind in (("dnabert-s", "dna"), ("esm2", "protein")):
        source = store.sequences(kind)  # type: ignore[arg-type]
        rows = unique_rows(source)
        costs = measure_costs(load_backend(backend).backend, source, rows)
        batches = plan_batches(rows, costs, 32_768)
        for number in range(len(batches)):
            source.get_many(batches[number])
        num_batches += len(batches)
    return f"{num_batches} batches"


def measure(step: Callable[[Path, Path], str], path: Path, directory: Path, answers: Any) -> None:
    """Run one step after importing what a run imports, and put what it took into `answers`."""
    import virnucpro.workflows.predict  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    what = step(path, directory)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers.put((step.__name__, what, seconds, before, peak))


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-reads", type=int, default=10_000_000)
    parser.add_argument("--length", type=int, default=150, help="of a read, in bp")
    parser.add_argument("--directory", type=Path, help="where to write (default: temporary)")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        path = Path(scratch, "reads.fasta")
        write_reads(path, args.num_reads, args.length)
        answers = context.Queue()
        for step in (build, plan):
            child = context.Process(
                target=measure, args=(step, path, Path(scratch, "frames"), answers)
            )
            child.start()
            name, what, seconds, before, peak = answers.get()
            child.join()
            print(
                f"{name}: {what}, {seconds:.0f} s, peak {peak / 2**20:.2f} GiB resident, "
                f"{before / 2**20:.2f} of it after importing"
            )


if __name__ == "__main__":
    main()

"""Measures on one core what a run does besides the models, for each letter and for each row.

    OMP_NUM_THREADS=1 python -m tools.benchmark_frames

The sequences are random: reads of 150 bp and contigs of 20 kb. For reading, cutting, translating
and storing, the rates are megabytes of letters a second of processor time, which other programs on
the machine disturb least. For planning, tokenizing, writing parts, and gathering and scoring, they
are rows (stretches) a second. The embeddings are random, and have the sizes of the small model.
"""

from __future__ import annotations

import argparse
import functools
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dnaio
import numpy as np
import numpy.typing as npt

from virnucpro.backend.arrays import split_rows
from virnucpro.backend.digests import digest_files
from virnucpro.checkpoints.parts import finished_parts
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import MINI_DIRECTORY, FrameRule, PredictConfig
from virnucpro.embedding.batches import measure_costs, plan_batches
from virnucpro.embedding.jobs import Job, make_frame_jobs
from virnucpro.embedding.models import open_model
from virnucpro.embedding.passes import Pass, gather_features
from virnucpro.embedding.writer import PartWriter
from virnucpro.runtime.monitoring import PassStatus
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.scoring.frame_scores import score_passes
from virnucpro.sequences import frames
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frame_store import FrameStore, StoreSettings, build_frame_store

CHUNK_LENGTH_BP = 500
BLOCK_BP = 1 << 18
ROWS_AT_A_TIME = 1 << 12
BATCH_TOKENS = 32_768
ROWS = "rows"


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


def report(what: str, number: int, work: Callable[[], object], unit: str = "MB") -> None:
    """Do `work` and print its rate by processor time, its wall time, and the peak memory so far."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = f"{number / 1e6 / cpu_seconds:12.1f} MB/s"
    if unit == ROWS:
        rate = f"{number / cpu_seconds:10,.0f} rows/s"
    print(f"  {what:<34} {rate} {seconds:8.2f} s   peak memory {peak_mib:6.0f} MiB")


def benchmark(record_length_bp: int, num_letters: int, directory: Path) -> Path:
    """Measure all stages on records of one length, and return the FASTA file."""
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
            build_frame_store([str(fasta)], target, StoreSettings(CHUNK_LENGTH_BP))
        ),
    )
    print(f"  {stores[0].num_rows} open frames")
    report("reading every frame back", size, lambda: read_frames(stores[0]))
    return fasta


def benchmark_pass(job: Job, rows_per_part: int) -> None:
    """Measure what a pass does for each row besides the model; the embeddings are random."""
    model, count = job.model, len(job.rows)
    print(f"{job.name}: {count} rows")
    batches: list[npt.NDArray[np.int64]] = []
    sequences: list[list[str]] = []

    def plan() -> None:
        costs = measure_costs(model.backend, job.source, job.rows)
        found = plan_batches(job.rows, costs, BATCH_TOKENS)
        batches.extend(found[index] for index in range(len(found)))

    report("costs and plan", count, plan, ROWS)
    report("fetching", count, lambda: sequences.extend(map(job.source.get_many, batches)), ROWS)
    collate = model.load_collator()
    report("tokenizing", count, lambda: list(map(collate, batches, sequences)), ROWS)
    rng, dim = np.random.default_rng(0), model.weights.embedding_dim
    embeddings = [rng.standard_normal((len(rows), dim), np.float32) for rows in batches]

    def write() -> None:
        status = PassStatus(job.name)
        with PartWriter(
            job.parts_dir, 0, job.identity, status, rows_per_part=rows_per_part
        ) as writer:
            for rows, block in zip(batches, embeddings, strict=True):
                writer.put(rows, functools.partial(np.asarray, block))

    report("writing parts", count, write, ROWS)


def benchmark_rows(store: FrameStore, rows_per_part: int, directory: Path) -> None:
    """Measure both passes, gathering and scoring for the stretches of a store."""
    config = PredictConfig(inputs=("contigs.fa",), model_type="mini")
    passes = []
    for name, weights in (("dnabert-s", "dnabert_s"), ("esm2", "esm2")):
        model = open_model(name, str(MINI_DIRECTORY / weights))
        [job] = make_frame_jobs(config, RunDirectory(directory, "contigs"), store, [model], "fp32")
        benchmark_pass(job, rows_per_part)
        passes.append(Pass(job, [], finished_parts(job.parts_dir)))
    rows = np.arange(store.num_rows)
    print(f"both passes: {len(rows)} rows")
    report("gathering", len(rows), lambda: gather_blocks(passes, rows), ROWS)
    classifier = load_classifier(config.resolved_model_path)
    report(
        "gathering and scoring", len(rows), lambda: score_passes(store, passes, classifier), ROWS
    )


def gather_blocks(passes: list[Pass], rows: npt.NDArray[np.int64]) -> None:
    """Read the embeddings of rows by both passes, block by block."""
    for block in split_rows(0, len(rows)):
        gather_features(passes, rows[block])


def main() -> None:
    """Print the rates of all stages, for reads and for contigs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64, help="sequence letters of each shape")
    parser.add_argument("--directory", type=Path, help="where to write (default: a temporary one)")
    parser.add_argument(
        "--rows-per-part",
        type=int,
        default=10_000,
        help="fewer than in a run make as many parts of few rows as a run of millions has",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for record_length_bp in (150, 20_000):
            fasta = benchmark(record_length_bp, options.megabytes * 1_000_000, Path(scratch))
        stores: list[FrameStore] = []
        rule = FrameRule("stretches")
        target = Path(scratch, "stretches")

        def build() -> None:
            stores.append(
                build_frame_store([str(fasta)], target, StoreSettings(CHUNK_LENGTH_BP, rule=rule))
            )

        print("the contigs by the rule stretches")
        report("FASTA to frame store", options.megabytes * 1_000_000, build)
        benchmark_rows(stores[0], options.rows_per_part, Path(scratch, "run"))


if __name__ == "__main__":
    main()

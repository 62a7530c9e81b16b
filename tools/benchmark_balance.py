"""Shows how claims balance unequal processes: four on the CPU, one of them four times slower.

An encoder that sleeps stands for the device, so there may be more processes than cores. The same
batches are embedded twice: first by claims, and then in static shares, where each of n processes
takes every n-th batch.

    python -m tools.benchmark_balance
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from virnucpro.backend.registry import LoadedBackend
from virnucpro.backend.testing import ToyBackend, write_toy_weights
from virnucpro.config import ComputeConfig
from virnucpro.embedding.batches import measure_costs, unique_rows
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.models import Model
from virnucpro.embedding.passes import run_pass
from virnucpro.runtime.run import Run, open_run
from virnucpro.sequences.frame_store import build_record_store, open_record_store

NUM_RECORDS = 3_000
BATCH_TOKENS = 2_000
SECONDS_PER_TOKEN = 1e-4
SLOWDOWNS = (1.0, 1.0, 1.0, 4.0)


class SleepyBackend(ToyBackend):
    """A toy backend on a slow device."""

    def __init__(self, seconds_per_token: float) -> None:
        self.seconds_per_token = seconds_per_token

    def load_encoder(self, *args: Any, **how: Any) -> Any:
        """Return the encoder of the toy, slowed down."""
        encoder = super().load_encoder(*args, **how)

        def encode(batch: Any) -> Any:
            time.sleep(self.seconds_per_token * len(batch.token_ids_T))
            return encoder(batch)

        return encode


def write_records(path: Path) -> None:
    """Write random records of 50 to 400 letters."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(NUM_RECORDS):
            letters = "".join(rng.choices("ACGT", k=rng.randint(50, 400)))
            file.write(f">{number}\n{letters}\n")


def make_job(directory: Path, name: str, slowdown: float) -> Job:
    """Return the job of all records on a device of that speed."""
    backend = SleepyBackend(SECONDS_PER_TOKEN * slowdown)
    weights = backend.open_weights(str(directory / "toy.safetensors"))
    source = open_record_store(directory / "store").sequences()
    return Job(
        name=name,
        model=Model(LoadedBackend(backend, "toy", "toy", "0"), weights),
        source=source,
        rows=unique_rows(source),
        parts_dir=directory / name.replace(" ", "-"),
        input_digest="sha256:0",
        precision="fp32",
        attention="auto",
        batch_tokens=BATCH_TOKENS,
    )


def measure(run: Run, directory: Path, how: str) -> None:
    """Embed all records; the main process prints how long each process took."""
    if how == "static shares":
        count = itertools.count(run.rank, run.num_processes)
        run.make_counter = lambda: count.__next__  # type: ignore[method-assign]
    job = make_job(directory, how, SLOWDOWNS[run.rank])
    seconds = [summary.loop_seconds for summary in run_pass(run, job).summaries]
    num_tokens = int(measure_costs(job.model.backend, job.source, job.rows).sum())
    ideal = num_tokens * SECONDS_PER_TOKEN / sum(1 / slowdown for slowdown in SLOWDOWNS)
    if run.is_main:
        each = ", ".join(f"{value:.1f}" for value in seconds)
        spread = max(seconds) - min(seconds)
        print(
            f"{how:>13}: the pass took {max(seconds):.1f} s, {max(seconds) / ideal:.2f} times the "
            f"ideal {ideal:.1f} s, spread {spread:.1f} s (each process: {each})",
            flush=True,
        )


def prepare(directory: Path) -> None:
    """Write the records and the weights."""
    write_records(directory / "records.fa")
    build_record_store([str(directory / "records.fa")], directory / "store", alphabet="dna")
    write_toy_weights(directory / "toy.safetensors")


def take_part(directory: Path) -> None:
    """Be one of the processes."""
    with open_run(ComputeConfig(device="cpu")) as run:
        run.once(lambda: prepare(directory))
        for how in ("claims", "static shares"):
            measure(run, directory, how)


def main() -> None:
    """Launch the processes, or be one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--take-part", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.take_part is not None:
        take_part(args.take_part)
        return
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = ["--num_processes", str(len(SLOWDOWNS)), "--num_machines", "1"]
    with tempfile.TemporaryDirectory() as scratch:
        script = ["-m", "tools.benchmark_balance", "--take-part", scratch]
        subprocess.run([*launcher, *options, *script], check=True)


if __name__ == "__main__":
    main()

"""Shows how claims balance unequal processes: four on the CPU, one of them slowed four times.

An encoder that sleeps stands for the device, so that more processes than cores can take part. The
same batches are embedded twice: as processes claim them, and dealt out in turn beforehand.

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

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from virnucpro.backend.testing import ToyBackend, write_toy_weights
from virnucpro.checkpoints.parts import Identity
from virnucpro.config import ComputeConfig
from virnucpro.embedding import loop as embedding
from virnucpro.embedding.batches import measure_costs, unique_rows
from virnucpro.runtime.devices import make_accelerator
from virnucpro.sequences.frame_store import build_record_store, open_record_store

NUM_RECORDS = 3_000
BATCH_TOKENS = 2_000
SECONDS_PER_TOKEN = 1e-4
SLOWDOWNS = (1.0, 1.0, 1.0, 4.0)


class SleepyBackend(ToyBackend):
    """A toy on a device that takes so long for a token."""

    def __init__(self, seconds_per_token: float) -> None:
        self.seconds_per_token = seconds_per_token

    def load_encoder(self, *args: Any, **how: Any) -> Any:
        """Return the toy's encoder, slowed."""
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


def make_job(directory: Path, parts: str, slowdown: float) -> embedding.EmbeddingJob:
    """Return the job of all records on a device of that speed."""
    backend = SleepyBackend(SECONDS_PER_TOKEN * slowdown)
    weights = backend.open_weights(str(directory / "toy.safetensors"))
    source = open_record_store(directory / "store").sequences()
    dim = weights.embedding_dim
    identity = Identity("sha256:0", "toy", "0", weights.identity, "fp32", 0, "mean", dim)
    return embedding.EmbeddingJob(
        name=parts,
        backend=backend,
        weights=weights,
        source=source,
        rows=unique_rows(source),
        parts_dir=directory / parts,
        identity=identity,
        batch_tokens=BATCH_TOKENS,
    )


def run(accelerator: Accelerator, directory: Path, how: str) -> tuple[list[float], int]:
    """Return how long each process was busy, in seconds, and the tokens of all of them."""
    rank, size = accelerator.process_index, accelerator.num_processes
    if how == "dealt out":
        embedding.make_counter = lambda _: itertools.count(rank, size).__next__
    job = make_job(directory, how.replace(" ", "-"), SLOWDOWNS[rank])
    accelerator.wait_for_everyone()
    summary = embedding.run_embedding(accelerator, job, ComputeConfig(device="cpu"))
    costs = measure_costs(job.backend.token_cost, job.source, job.rows)
    return gather_object([summary.loop_seconds]), int(costs.sum())


def take_part(directory: Path) -> None:
    """Be one of the processes; the main one prints."""
    accelerator = make_accelerator(ComputeConfig(device="cpu"))
    if accelerator.is_main_process:
        write_records(directory / "records.fa")
        build_record_store([str(directory / "records.fa")], directory / "store", alphabet="dna")
        write_toy_weights(directory / "toy.safetensors")
    broadcast_object_list([None])
    for how in ("claimed", "dealt out"):
        seconds, num_tokens = run(accelerator, directory, how)
        ideal = num_tokens * SECONDS_PER_TOKEN / sum(1 / slowdown for slowdown in SLOWDOWNS)
        if accelerator.is_main_process:
            each = ", ".join(f"{value:.1f}" for value in seconds)
            spread = max(seconds) - min(seconds)
            print(
                f"{how:>9}: makespan {max(seconds):.1f} s, {max(seconds) / ideal:.2f} times the "
                f"ideal {ideal:.1f} s, spread {spread:.1f} s (each process: {each})",
                flush=True,
            )
    accelerator.end_training()


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

"""Measures what it costs to start: seconds and host memory, by the number of processes.

Each process embeds one protein, so that almost only the start counts. The memory is the
proportional share (PSS) of all processes together, sampled every 50 ms. A page that several
processes map counts once.

    python -m tools.measure_loading esm2.pt --processes 1 4
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import psutil

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQ"


def measure(weights: Path, num_processes: int, directory: Path) -> tuple[float, int]:
    """Return the seconds and the peak memory of one `embed` with a protein for each process."""
    fasta = directory / "proteins.faa"
    fasta.write_text("".join(f">{n}\n{PROTEIN[n:]}\n" for n in range(num_processes)))
    output = directory / f"{num_processes}.h5"
    options = ["--backend", "esm2", "--weights", weights, "-o", output, "--no-progress"]
    processes = ["--num-processes", num_processes, "--batch-tokens", 1]
    command = [sys.executable, "-m", "virnucpro", "-q", "embed", fasta, *options, *processes]
    began = time.monotonic()
    peak = 0
    with subprocess.Popen([str(word) for word in command]) as process:
        leader = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, add_up_memory(leader))
            time.sleep(0.05)
    seconds = time.monotonic() - began
    with h5py.File(output) as file:
        assert len(file["ids"]) == num_processes
    return seconds, peak


def add_up_memory(leader: psutil.Process) -> int:
    """Return the proportional memory of a process and all that it has started, in bytes."""
    total = 0
    for process in [leader, *leader.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # It has just ended.
            continue
    return total


def main() -> None:
    """Print a line for each number of processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    args = parser.parse_args()
    print(f"{args.weights}: {args.weights.stat().st_size / 2**20:.0f} MiB")
    for num_processes in args.processes:
        with tempfile.TemporaryDirectory() as scratch:
            seconds, peak = measure(args.weights, num_processes, Path(scratch))
        print(f"{num_processes} processes: {seconds:.1f} s, peak {peak / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()

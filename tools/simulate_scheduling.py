"""Simulates how claimed batches spread over GPUs: one to thousands, equal and unequal.

    python -m tools.simulate_scheduling                      # claims and static shares
    python -m tools.simulate_scheduling --remedies           # ways to shorten the end
    python -m tools.simulate_scheduling --sequences sample.fa --model dnabert-s --json

Every process claims the next batch of one list, longest sequences first (greedy list scheduling:
Graham 1966, doi:10.1002/j.1538-7305.1966.tb01709.x). Static sharding deals out the same list in
turn. The times were measured on an H200, and other GPUs have a speed relative to it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from virnucpro_dnabert_s import backend as dnabert_s
from virnucpro_esm2 import backend as esm2

from virnucpro.backend.interface import Backend
from virnucpro.embedding.batches import measure_costs, plan_batches, unique_rows
from virnucpro.sequences.frame_store import StoreSettings, build_frame_store

FloatArray = npt.NDArray[np.float64]

BATCH_TOKENS = 32_768
SPEEDS = {"H200": 1.0, "RTX 4090": 0.167, "T4": 0.066}
"""Dense 16-bit tensor throughput by NVIDIA's data sheets (989, 165 and 65 TFLOP/s) over the H200's.

A T4 of 70 W sustains less than its sheet says; give `--speeds` what you measured.
"""


@dataclass(frozen=True)
class TimedModel:
    """A model, and the time that a batch costs on an H200.

    Attributes:
        batch_s: Seconds of a batch of 32,768 tokens, measured with random weights of the real size.
        overhead_s: Of these, what a batch costs however small it is: an estimate, about 0.14 ms a
            layer for starting its kernels.
    """

    name: str
    backend: Backend
    kind: Literal["dna", "protein"]
    batch_s: float
    overhead_s: float

    def seconds(self, num_tokens: FloatArray) -> FloatArray:
        """Return the seconds of batches of so many tokens."""
        return self.overhead_s + num_tokens * ((self.batch_s - self.overhead_s) / BATCH_TOKENS)


MODELS = {
    model.name: model
    for model in (
        TimedModel("esm2-3b", esm2, "protein", batch_s=0.386, overhead_s=0.005),
        TimedModel("dnabert-s", dnabert_s, "dna", batch_s=0.0243, overhead_s=0.0017),
    )
}


@dataclass(frozen=True)
class Schedule:
    """What became of a list of batches; arrays are over processes, times in seconds from launch.

    Attributes:
        speeds: Relative to the GPU whose seconds the batches were given in.
        ready_s: When each process could compute.
        num_batches: How many batches each one computed.
        busy_s: How long it computed.
        wait_s: How long it had nothing to compute because its claim was not answered yet.
        end_s: When it had finished its last batch.
    """

    speeds: FloatArray
    ready_s: FloatArray
    num_batches: npt.NDArray[np.int64]
    busy_s: FloatArray
    wait_s: FloatArray
    end_s: FloatArray

    @property
    def makespan_s(self) -> float:
        """When the last process had finished."""
        return float(self.end_s.max())

    @property
    def ideal_s(self) -> float:
        """Work divided by the sum of speeds: all start at once and finish at once."""
        return self._weigh(self.busy_s)

    @property
    def efficiency(self) -> float:
        """The ideal time divided by the makespan; 1 less all of `losses`."""
        return self.ideal_s / self.makespan_s

    @property
    def spread_s(self) -> float:
        """Between the first and the last process to finish."""
        return float(np.ptp(self.end_s))

    @property
    def claims_per_s(self) -> float:
        """Claims that the ideal run asks of the store."""
        return int(self.num_batches.sum()) / self.ideal_s

    @property
    def losses(self) -> dict[str, float]:
        """Share of the GPUs' capacity that went into starting, claiming and waiting at the end."""
        lost = {"start": self.ready_s, "claims": self.wait_s, "end": self.makespan_s - self.end_s}
        return {name: self._weigh(seconds) / self.makespan_s for name, seconds in lost.items()}

    def _weigh(self, seconds: FloatArray) -> float:
        return float(seconds @ self.speeds / self.speeds.sum())


def simulate(
    batch_s: FloatArray,
    speeds: FloatArray,
    ready_s: FloatArray | float = 0.0,
    *,
    ahead: int = 1,
    claims_per_s: float = math.inf,
    latency_s: float = 0.0,
    may_decline: bool = False,
) -> Schedule:
    """Return what happens when every process claims the next batch of the list.

    Args:
        batch_s: Seconds of each batch at speed 1, in the order of the list.
        speeds: Of each process.
        ready_s: When each process starts to claim.
        ahead: Batches that a process has claimed beyond the one that it computes.
        claims_per_s: What the store answers, one claim after the other.
        latency_s: Of the way to the store and back.
        may_decline: A process stops claiming when the others will empty the list before it could
            finish one more batch. From its own claims alone it knows that one of so many falls to
            it (`interval`); whoever has claimed its fair share or more goes on, so that somebody
            always does.
    """
    ready_s = np.broadcast_to(np.asarray(ready_s, dtype=np.float64), speeds.shape)
    num_batches, last_claim, waits = ([0] * len(speeds) for _ in range(3))
    # The ends of each process's last batches: the next but `ahead` + 1 may be claimed at the first.
    ends = [deque([ready] * (ahead + 1), maxlen=ahead + 1) for ready in ready_s.tolist()]
    pace = speeds.tolist()

    def declines(process: int) -> bool:
        # What was claimed at the start, ahead of any computing, says nothing about speed.
        num_mine = num_batches[process] - ahead
        num_all = last_claim[process] + 1 - ahead * len(speeds)
        if not may_decline or num_mine <= 0:
            return False
        interval = num_all / num_mine
        num_left = max(0, len(batch_s) - last_claim[process] - interval)
        return (ahead + 1) * (interval - len(speeds)) > num_left

    requests = [(ready, process) for process, ready in enumerate(ready_s.tolist())]
    heapq.heapify(requests)
    store_free = 0.0
    for index, seconds in enumerate(batch_s.tolist()):
        asked, process = heapq.heappop(requests)
        while declines(process):
            asked, process = heapq.heappop(requests)
        store_free = max(store_free, asked + latency_s / 2) + 1 / claims_per_s
        answered = store_free + latency_s / 2
        mine = ends[process]
        start = max(mine[-1], answered)
        waits[process] += start - mine[-1]
        num_batches[process] += 1
        last_claim[process] = index
        mine.append(start + seconds / pace[process])
        heapq.heappush(requests, (max(answered, mine[0]), process))
    wait_s = np.asarray(waits)
    end_s = np.asarray([mine[-1] for mine in ends])
    busy_s = end_s - ready_s - wait_s
    return Schedule(speeds, ready_s, np.asarray(num_batches), busy_s, wait_s, end_s)


def simulate_static(
    batch_s: FloatArray, speeds: FloatArray, ready_s: FloatArray | float = 0.0
) -> Schedule:
    """Return what happens when the processes take the batches in turns, whatever their speed."""
    ready_s = np.broadcast_to(np.asarray(ready_s, dtype=np.float64), speeds.shape)
    owner = np.arange(len(batch_s)) % len(speeds)
    num_batches = np.bincount(owner, minlength=len(speeds))
    busy_s = np.bincount(owner, batch_s, minlength=len(speeds)) / speeds
    no_wait = np.zeros(len(speeds))
    return Schedule(speeds, ready_s, num_batches, busy_s, no_wait, ready_s + busy_s)


def taper(batch_tokens: FloatArray, num_processes: int, smallest: int) -> FloatArray:
    """Return the list with its batches cut ever smaller towards the end.

    A batch has at most half of each process's share of what is left (factoring: Hummel, Schonberg
    and Flynn 1992, doi:10.1145/135226.135232), but never fewer than `smallest` tokens on purpose.
    """
    left = batch_tokens[::-1].cumsum()[::-1]
    allowed = np.maximum(left / (2 * num_processes), smallest)
    num_pieces = np.ceil(batch_tokens / allowed).astype(np.int64)
    return np.repeat(batch_tokens / num_pieces, num_pieces)


def plan_tokens(
    paths: Sequence[str], model: TimedModel, chunk_length_bp: int, batch_tokens: int, copies: int
) -> FloatArray:
    """Return the tokens of each batch that a run over sequence files has for one model.

    With `copies`, as many as a run over so many different samples of this composition.
    """
    with tempfile.TemporaryDirectory() as directory:
        store = build_frame_store(paths, Path(directory), StoreSettings(chunk_length_bp))
        source = store.sequences(model.kind)
        rows = unique_rows(source)
        costs = measure_costs(model.backend, source, rows)
    batches = plan_batches(rows, costs, batch_tokens)
    num_tokens = np.add.reduceat(batches.costs, batches.starts[:-1]).astype(np.float64)
    # A run has one partial batch, however large it is.
    return np.append(np.repeat(num_tokens[:-1], copies), num_tokens[-1])


def write_random_reads(path: Path, num_reads: int, length_bp: int) -> None:
    """Write random reads, always the same."""
    source = random.Random(0)
    with path.open("w") as file:
        for number in range(num_reads):
            file.write(f">{number}\n{''.join(source.choices('ACGT', k=length_bp))}\n")


def make_fleets(
    num_gpus: Sequence[int], speeds: Sequence[float]
) -> Iterator[tuple[str, FloatArray]]:
    """Yield equal GPUs of the first speed, then mixed ones that have the speeds in turns."""
    for num in num_gpus:
        yield "equal", np.full(num, speeds[0])
    for num in num_gpus:
        if len(speeds) > 1 and num >= len(speeds):
            yield "mixed", np.resize(np.asarray(speeds), num)


def compare(args: argparse.Namespace, num_tokens: FloatArray) -> Iterator[dict[str, Any]]:
    """Yield the figures of claims and of static shares for each fleet."""
    batch_s = MODELS[args.model].seconds(num_tokens)
    rng = np.random.default_rng(0)
    for fleet, speeds in make_fleets(args.gpus, args.speeds):
        ready_s = rng.uniform(args.startup[0], args.startup[1], len(speeds))
        claimed = simulate(
            batch_s,
            speeds,
            ready_s,
            ahead=args.ahead,
            claims_per_s=args.claims_per_s,
            latency_s=args.latency,
        )
        static = simulate_static(batch_s, speeds, ready_s)
        yield {
            "fleet": fleet,
            "gpus": len(speeds),
            "batches_per_gpu": len(batch_s) / len(speeds),
            "ideal_s": claimed.ideal_s,
            "claims_per_s": claimed.claims_per_s,
            "makespan_s": claimed.makespan_s,
            "efficiency": claimed.efficiency,
            "losses": claimed.losses,
            "spread_s": claimed.spread_s,
            "static_makespan_s": static.makespan_s,
            "static_efficiency": static.efficiency,
            "static_spread_s": static.spread_s,
        }


def compare_remedies(args: argparse.Namespace, num_tokens: FloatArray) -> Iterator[dict[str, Any]]:
    """Yield how far each remedy leaves each fleet from the ideal, for several claims ahead."""
    model = MODELS[args.model]
    batch_s = model.seconds(num_tokens)
    for fleet, speeds in make_fleets(args.gpus, args.speeds):
        ideal_s = batch_s.sum() / speeds.sum()
        tapered_s = model.seconds(taper(num_tokens, len(speeds), args.smallest))
        for ahead in (0, 1, 2, 4, 16):
            settings = {
                "ahead": ahead,
                "claims_per_s": args.claims_per_s,
                "latency_s": args.latency,
            }
            late_s = {
                "claims": simulate(batch_s, speeds, **settings),
                "taper": simulate(tapered_s, speeds, **settings),
                "decline": simulate(batch_s, speeds, may_decline=True, **settings),
            }
            yield {
                "fleet": fleet,
                "gpus": len(speeds),
                "ahead": ahead,
                "ideal_s": ideal_s,
                "late_s": {name: run.makespan_s - ideal_s for name, run in late_s.items()},
            }


def print_comparison(rows: Iterator[dict[str, Any]]) -> None:
    """Print one line for each fleet, its losses in per cent of the capacity."""
    print(
        f"{'':13} {'batches':>8} {'ideal':>9} | {'claims':>9} {'effi-':>6} {'lost to':>7} "
        f"{'':>6} {'':>6} {'spread':>7} {'claims':>8} | {'static':>9} {'effi-':>6} {'spread':>9}\n"
        f"{'GPUs':13} {'per GPU':>8} {'s':>9} | {'s':>9} {'ciency':>6} {'start':>7} "
        f"{'claims':>6} {'end':>6} {'s':>7} {'per s':>8} | {'s':>9} {'ciency':>6} {'s':>9}"
    )
    for row in rows:
        lost = row["losses"]
        print(
            f"{row['gpus']:>6,} {row['fleet']:6} {row['batches_per_gpu']:>8,.1f} "
            f"{row['ideal_s']:>9,.1f} | {row['makespan_s']:>9,.1f} {row['efficiency']:>6.1%} "
            f"{lost['start']:>7.1%} {lost['claims']:>6.1%} {lost['end']:>6.1%} "
            f"{row['spread_s']:>7,.2f} {row['claims_per_s']:>8,.0f} | "
            f"{row['static_makespan_s']:>9,.1f} {row['static_efficiency']:>6.1%} "
            f"{row['static_spread_s']:>9,.1f}"
        )


def print_remedies(rows: Iterator[dict[str, Any]]) -> None:
    """Print the seconds beyond the ideal, one line for each fleet and claims ahead."""
    print("seconds beyond the ideal")
    print(f"{'GPUs':13} {'ahead':>5} {'ideal s':>9} | {'claims':>8} {'taper':>8} {'decline':>8}")
    for row in rows:
        late = " ".join(f"{seconds:>8.2f}" for seconds in row["late_s"].values())
        print(
            f"{row['gpus']:>6,} {row['fleet']:6} {row['ahead']:>5} {row['ideal_s']:>9,.1f} | {late}"
        )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sequences", nargs="+", help="FASTA or FASTQ files; random reads if not given")
    add("--reads", type=int, default=100_000, help="how many random reads")
    add("--read-length", type=int, default=150, help="bp")
    add("--copies", type=int, default=4000, help="a run over so many samples of this kind")
    add("--chunk-length", type=int, default=500, help="bp")
    add("--model", choices=MODELS, default="esm2-3b")
    add("--budget", type=int, default=BATCH_TOKENS, help="tokens of a batch")
    add("--gpus", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024, 4096])
    names = ", ".join(f"{speed} {name}" for name, speed in SPEEDS.items())
    add("--speeds", type=float, nargs="+", default=[*SPEEDS.values()], help=f"default: {names}")
    add("--ahead", type=int, default=2, help="batches claimed beyond the one being computed")
    add("--claims-per-s", type=float, default=70_000, help="what the store answers")
    add("--latency", type=float, default=0.0005, help="of a claim's way and back, s")
    add("--startup", type=float, nargs=2, default=(0.0, 0.0), metavar=("MIN", "MAX"), help="s")
    add("--remedies", action="store_true", help="compare ways to shorten the end instead")
    add("--smallest", type=int, default=2048, help="tokens of the smallest tapered batch")
    add("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Print the comparison that was asked for."""
    args = parse_arguments()
    model = MODELS[args.model]
    with tempfile.TemporaryDirectory() as directory:
        reads_path = Path(directory) / "reads.fa"
        if not args.sequences:
            write_random_reads(reads_path, args.reads, args.read_length)
        paths = args.sequences or [str(reads_path)]
        num_tokens = plan_tokens(paths, model, args.chunk_length, args.budget, args.copies)
    rows = (compare_remedies if args.remedies else compare)(args, num_tokens)
    if args.json:
        print(json.dumps([*rows], indent=1))
        return
    print(f"{model.name}: {len(num_tokens):,} batches of {num_tokens.mean():,.0f} tokens")
    (print_remedies if args.remedies else print_comparison)(rows)


if __name__ == "__main__":
    main()

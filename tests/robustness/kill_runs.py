"""Kills runs at random moments, finishes them, and compares what they leave with undisturbed runs.

Each chain kills a run several times, then lets it finish. Nothing may differ, not in one byte.

    python -m tests.robustness.kill_runs --kills 200
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests import legacy_files as old
from tests.robustness.children import Ending, start, wait
from tests.runs import predict_options, write_reads
from tests.small_parts import SmallPartWriter
from tests.workflows.test_train import write_genomes
from tools.make_demo_weights import make_demo_weights
from virnucpro.embedding import loop

SECONDS = 600.0
KILLS_PER_CHAIN = 6
# Small batches and parts, so that a small run has many moments.
BUDGETS = ("--dna-batch-tokens=100", "--protein-batch-tokens=100")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Story:
    """A command that is killed.

    Attributes:
        command: Starts the run in the directory `out`, or continues it.
        results: What the run leaves, as patterns below `out`.
        num_processes: How many processes the launch has.
        continues: Whether the command goes on in `out`; otherwise it starts afresh.
    """

    command: Sequence[str]
    results: Sequence[str]
    num_processes: int = 1
    continues: bool = True


def prepare(directory: Path) -> dict[str, Story]:
    """Write everything that the stories read, and return the stories."""
    reads = write_reads(directory / "reads.fa", 150)
    viral = write_genomes(directory / "viral.fa", 15, 0.35, 0)
    other = write_genomes(directory / "other.fa", 15, 0.55, 1)
    weights = make_demo_weights(directory / "w")
    options = predict_options(weights)
    encoders = [one for one in options if not one.startswith("--model-path")]
    dna, protein = old.make_frames(300, 6, seed=1), old.make_frames(300, 4, seed=2)
    for number in range(6):
        names = list(dna)[50 * number : 50 * number + 50]
        old.save(
            directory / f"old/s_nucleotide/output_{number}_DNABERT_S.pt",
            old.dna_document({name: dna[name] for name in names}),
        )
        old.save(
            directory / f"old/s_protein/output_{number}_ESM.pt",
            old.protein_document({name: protein[name] for name in names}),
        )
    stories = {}
    for number in (1, 2, 3):
        stories[f"predict,{number}"] = Story(
            ["predict", str(reads), "-o", "out", "--resume", *options, *BUDGETS],
            ["*_merged/*", "records.tsv", "viral.fasta"],
            number,
        )
        stories[f"embed,{number}"] = Story(
            [
                *("embed", str(reads), "-o", "out/v.h5", "--resume", "--backend=dnabert-s"),
                *(f"--weights={weights['dna_weights']}", "--device=cpu", "--batch-tokens=100"),
            ],
            ["v.h5"],
            number,
        )
        stories[f"train,{number}"] = Story(
            [
                *("train", "--viral", str(viral), "--other", str(other), "-o", "out/m.safetensors"),
                *("--resume", "--epochs=5", "-e", "90", *encoders, *BUDGETS),
            ],
            ["m.safetensors", "m_training/report.tsv"],
            number,
        )
    stories["migrate,1"] = Story(
        ["migrate", str(directory / "old"), "-o", "out/new", "--dna-dim=6", "--protein-dim=4"],
        ["new/**/part-*.h5"],
    )
    done = play(directory, Story([*stories["predict,1"].command, "-o", "run"], []))
    assert done.exit_code == 0, done.output
    for form, pattern in (("anndata", "x/*.h5ad"), ("npz", "x/*.npz"), ("pt", "x/*.pt")):
        stories[f"export-{form},1"] = Story(
            [
                *("export", str(directory / "run"), "-o", "out/x", "--to", form),
                "--sequences-per-file=200",
            ],
            [pattern],
            continues=False,
        )
    return stories


# Playing


def begin(directory: Path, story: Story) -> list[int]:
    """Start the processes of a story, and return their numbers."""
    (directory / "out").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pids = []
    for rank in range(story.num_processes):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": story.num_processes,
            "LOCAL_WORLD_SIZE": story.num_processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        variables = {name: str(value) for name, value in place.items()}
        pids.append(
            start(
                story.command,
                directory / f"said_{rank}.txt",
                directory=directory,
                environment=variables if story.num_processes > 1 else None,
            )
        )
    return pids


def play(directory: Path, story: Story) -> Ending:
    """Let a story go to its end, and return how its main process ended."""
    pids = begin(directory, story)
    endings = [wait(pid, directory / f"said_{rank}.txt", SECONDS) for rank, pid in enumerate(pids)]
    failed = [ending for ending in endings if ending.exit_code != 0]
    return failed[0] if failed else endings[0]


def strike(pids: Sequence[int], chance: random.Random) -> None:
    """Kill all processes of a run, or one of them first, by a signal that `chance` chooses."""
    victims = list(pids)
    if chance.random() < 0.5:
        chance.shuffle(victims)
        number = chance.choice(SIGNALS)
        with suppress(ProcessLookupError):
            os.kill(victims[0], number)
        time.sleep(chance.choice([0, 0.05, 0.5]))
    families = []
    for pid in victims:
        with suppress(psutil.NoSuchProcess):
            families += psutil.Process(pid).children(recursive=True)
    for pid in [*victims, *(one.pid for one in families)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def compute(pids: Sequence[int], cpu_seconds: float) -> bool:
    """Wait until processes have computed for so long; return whether one has ended before."""

    def used() -> float:
        family = [psutil.Process(pid) for pid in pids]
        family += [one for each in family for one in each.children(recursive=True)]
        # Of each with the processes that it has waited for.
        return sum(sum(one.cpu_times()[:4]) for one in family)

    while True:
        with suppress(psutil.NoSuchProcess):
            if any(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids):
                return True
            if used() >= cpu_seconds:
                return False
        time.sleep(0.002)


@dataclass
class Tally:
    """What came of one story.

    Attributes:
        kills: Runs killed on their way.
        late: Runs that had ended before they could be killed.
        faults: What differed or failed after the last run of a chain.
    """

    kills: int
    late: int
    faults: list[str]


def kill_runs(directory: Path, story: Story, num_kills: int, seed: int) -> Tally:
    """Kill a story `num_kills` times, in chains that end with a whole run."""
    chance = random.Random(seed)
    out = directory / "out"
    shutil.rmtree(out, ignore_errors=True)
    began = os.times()
    undisturbed = play(directory, story)
    assert undisturbed.exit_code == 0, undisturbed.output
    ended = os.times()
    cpu_seconds = sum(ended[2:4]) - sum(began[2:4])
    wanted = _results(out, story)
    assert wanted
    tally = Tally(0, 0, [])
    while tally.kills < num_kills:
        shutil.rmtree(out)
        for _ in range(min(KILLS_PER_CHAIN, num_kills - tally.kills)):
            pids = begin(directory, story)
            # The end costs time, too, in which nothing is left to disturb.
            if compute(pids, chance.uniform(0, 0.8 * cpu_seconds)):
                tally.late += 1
            strike(pids, chance)
            tally.kills += 1
            if not story.continues and chance.random() < 0.5:
                shutil.rmtree(out, ignore_errors=True)
        last = play(directory, story)
        if last.exit_code and not story.continues:
            # It refuses a directory that is not empty, and says so.
            assert "empty" in last.output, last.output
            shutil.rmtree(out)
            last = play(directory, story)
        if last.exit_code != 0:
            tally.faults.append(f"exit code {last.exit_code}: {last.output[-1_000:]}")
        elif _results(out, story) != wanted:
            found = _results(out, story)
            names = [name for name in wanted if found.get(name) != wanted[name]]
            tally.faults.append(f"differs: {', '.join(names)}")
    return tally


def _results(out: Path, story: Story) -> dict[str, bytes]:
    found = sorted(path for pattern in story.results for path in out.glob(pattern))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def main() -> None:
    """Do what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="over all stories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stories", nargs="+", help="names, such as predict,2")
    args = parser.parse_args()
    loop.PartWriter = SmallPartWriter  # type: ignore[misc]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        stories = prepare(Path(scratch))
        names = args.stories or list(stories)
        print(f"{'command, processes':20} kills  late  faults", flush=True)  # noqa: T201
        num_faults = 0
        for index, name in enumerate(names):
            share = len(range(index, args.kills, len(names)))
            tally = kill_runs(Path(scratch), stories[name], share, args.seed)
            print(f"{name:20} {tally.kills:5} {tally.late:5} {len(tally.faults):7}", flush=True)  # noqa: T201
            num_faults += len(tally.faults)
            for fault in tally.faults:
                print(f"    {fault}", flush=True)  # noqa: T201
    sys.exit(num_faults > 0)


if __name__ == "__main__":
    main()

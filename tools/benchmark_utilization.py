"""Prints how well a finished run used its devices in the embedding passes.

python -m tools.benchmark_utilization RUN_DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from virnucpro.checkpoints.run_directory import METRICS_NAME

HEAD = (
    "pass",
    "process",
    "loop s",
    "tokens/s",
    "device busy",
    "data",
    "disk",
    "GPU mean",
    "median",
    "5 %",
)


def main() -> None:
    """Print a line for every process in every pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    directory: Path = parser.parse_args().run_dir
    run = json.loads((directory / "run.json").read_text())
    seen = read_utilization(directory / METRICS_NAME)
    print("|", " | ".join(HEAD), "|")
    print("|---" * len(HEAD) + "|")
    for name, processes in run["passes"].items():
        for process in processes:
            print("|", " | ".join([name, *describe(process, seen[name, process["rank"]])]), "|")
    loops = [max(process["loop_seconds"] for process in done) for done in run["passes"].values()]
    total = run["seconds"]["total"]
    print(f"\nThe passes' loops took {sum(loops):.1f} of {total:.1f} s ({sum(loops) / total:.1%}).")


def read_utilization(path: Path) -> dict[tuple[str, int], list[float]]:
    """Return the GPU utilization in the samples of the last run, in percent, by pass and rank."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in map(json.loads, path.read_text().splitlines()):
        if line["kind"] == "start":
            found.clear()
        if line["kind"] == "sample" and line["state"] == "embedding" and line["gpu"] is not None:
            percent = line["gpu"]["utilization_percent"]
            if percent is not None:
                found[line["pass_name"], line["rank"]].append(percent)
    return found


def describe(process: dict[str, Any], seen: list[float]) -> list[str]:
    """Return the cells of a process that took part in the pass."""
    shares = [f"{process[f'{kind}_share']:.1%}" for kind in ("device", "data", "disk")]
    mean = process["gpu_utilization_percent"]
    used = ["", "", ""]
    if len(seen) > 1:
        used = [f"{mean} %", f"{statistics.median(seen):.0f} %"]
        used.append(f"{statistics.quantiles(seen, n=20, method='inclusive')[0]:.0f} %")
    return [
        f"{process['rank']} ({process['device']})",
        f"{process['loop_seconds']:.1f}",
        f"{process['tokens_per_second']:,.0f}",
        *shares,
        *used,
    ]


if __name__ == "__main__":
    main()

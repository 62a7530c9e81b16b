"""Prints how well a model recognizes records of groups that it never saw, beside a 6-mer baseline.

    python -m tools.mini.evaluate genomes.npz test.npz virnucpro/data/mini evaluated

It draws records of each length from the test split and lets `virnucpro predict` call them. Records
of 300 and 500 bp are single chunks, drawn so that chunks with an open frame are balanced. Longer
records are all balanced. Records without a call do not count in the areas under the curve, nor in
the calibration error. The table shows how many records have a call, and how each kind is called.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tools.mini.baseline_kmers import fit_baseline
from tools.mini.figures import Floats, balanced_predictions, figures_by_kind
from tools.mini.genomes import read_genomes
from tools.mini.kmers import count_kmers
from tools.mini.records import (
    CHUNK_LENGTHS_BP,
    LENGTHS_BP,
    CalledRecords,
    DrawnRecords,
    call_records,
    draw_records,
)


def measure(records: DrawnRecords, called: CalledRecords, floor: Floats) -> dict[str, Any]:
    """Return the figures of the model and of the baseline, and the shares of each kind.

    Args:
        records: The records.
        called: What the model said of them.
        floor: float64 (N,), what the baseline did.
    """
    has_call = called.has_call
    is_viral, kinds = records.is_viral_N[has_call], records.kinds_N[has_call]
    figures = {
        name: figures_by_kind(
            balanced_predictions(score[has_call], probability[has_call], is_viral), kinds
        )
        for name, score, probability in (
            ("model", called.score, called.probability),
            ("6-mers", floor, floor),
        )
    }
    shares = {
        str(kind): {
            "num_records": int(is_kind.sum()),
            "called": float(has_call[is_kind].mean()),
            "virus": float(called.is_called_viral[is_kind].mean()),
        }
        for kind, is_kind in (
            (kind, records.kinds_N == kind) for kind in np.unique(records.kinds_N)
        )
    }
    return {**figures, "shares": shares}


def format_table(length_bp: int, num_called: int, found: dict[str, Any]) -> str:
    """Return the lines of one length."""
    num_records = sum(share["num_records"] for share in found["shares"].values())
    lines = [
        f"{length_bp} bp ({num_called:,} of {num_records:,} records have a call)",
        f"  {'':24}{'model':>8}{'6-mers':>8}{'called':>8}{'virus':>8}",
    ]
    for name, value in found["model"].items():
        share = found["shares"].get(name)
        tail = "" if share is None else f"{share['called']:8.3f}{share['virus']:8.3f}"
        title = {"all": "all", "ece": "calibration error"}.get(name, name)
        lines.append(f"  {title:24}{value:8.3f}{found['6-mers'].get(name, np.nan):8.3f}{tail}")
    return "\n".join(lines)


def main() -> None:
    """Print the figures, one line for each model, length and kind, and write them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, help="packed, with the splits train and valid")
    parser.add_argument("test", type=Path, help="packed, with the split test")
    parser.add_argument("model", type=Path, help="the directory that tools.mini.finish wrote")
    parser.add_argument("output", type=Path, help="the directory for records and figures")
    parser.add_argument("--split", default="test", help="of the second file")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    parser.add_argument("--num-records", type=int, default=4000, help="of each length")
    parser.add_argument("--num-chunks", type=int, default=20_000, help="for the baseline to learn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    train, valid = (read_genomes(args.genomes, split) for split in ("train", "valid"))
    test = read_genomes(args.test, args.split)
    for length_bp in args.lengths:
        records = draw_records(test, length_bp, args.num_records, args.seed)
        chunk_length_bp = length_bp if length_bp in CHUNK_LENGTHS_BP else max(CHUNK_LENGTHS_BP)
        directory = args.output / str(length_bp)
        called = call_records(records, args.model, chunk_length_bp, directory)
        baseline = fit_baseline(train, valid, length_bp, args.num_chunks, args.seed)
        floor = baseline.score(count_kmers(records.codes_NL)).double().numpy()
        found = measure(records, called, floor)
        (directory / "figures.json").write_text(json.dumps(found, indent=2) + "\n")
        print(format_table(length_bp, int(called.has_call.sum()), found), flush=True)


if __name__ == "__main__":
    main()

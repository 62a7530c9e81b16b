"""Prints how well a model recognizes records of groups that it never saw, beside others.

    python -m tools.mini.evaluate test_1.npz test_2.npz --model virnucpro/data/mini \
      --former former/mini --genomes train_*.npz --output evaluated

Each packed file is a collection. Records of each length are drawn from each collection, as many of
every kind, and `virnucpro predict` calls them. The figures are of each collection, and of all
together, where each collection weighs the same. Beside the model stand an earlier model and a
logistic regression on 6-mer frequencies.

Records without a call rank last under `all`, and are left out under `called`. A kind's AUROC is
that of the kind against all kinds of the other side. `virus` is the share of the kind's records
that are called viral: right for viral kinds, and wrong for the others. `5 %` is the share of a
viral kind that would be, if the threshold called 5 % of the cellular records viral. The intervals
(95 %) are those of a bootstrap over groups; fewer than five groups have none.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.mini.baseline_kmers import fit_baseline
from tools.mini.figures import Bools
from tools.mini.genomes import Genomes, read_genomes
from tools.mini.kmers import count_kmers
from tools.mini.records import (
    LENGTHS_BP,
    CalledRecords,
    DrawnRecords,
    call_records,
    draw_records,
    join_records,
    make_predictions,
)
from virnucpro.reports.metrics import Predictions, estimate_metrics, measure_metrics, trace_curves
from virnucpro.reports.report import against_the_rest

_MAX_FALSE = 0.05
_BASELINE = "6-mers"
_BASELINE_BASES = 20_000_000
"""Of the chunks that the 6-mers learn from: fewer chunks of a greater length take as long."""


def measure_kind(kind: str, predictions: Predictions, is_kind: Bools) -> dict[str, Any]:
    """Return the figures of one model for the records of one kind, or of `all`.

    Args:
        kind: The kind's name.
        predictions: All records.
        is_kind: Which of them are of this kind.
    """
    has_call = predictions.score >= 0
    chosen = is_kind
    if kind != "all":
        _, chosen = against_the_rest(kind, is_kind, predictions.is_viral)
    found = estimate_metrics(predictions.select(chosen))
    figures = {
        "called_share": float(has_call[is_kind].mean()),
        "auroc_all": found["auroc"],
        "auroc_called": measure_metrics(predictions.select(chosen & has_call))["auroc"],
    }
    if kind == "all":
        return figures | {"calibration_error": found["calibration_error"].value}
    if kind.startswith("viral/"):
        true, false = trace_curves(predictions.select(chosen))
        found_at = np.interp(_MAX_FALSE, false / false[-1], true / true[-1])
        return figures | {"virus": found["recall"], "found_at_5_percent": float(found_at)}
    value, low, high = found["specificity"]
    return figures | {"virus": (1 - value, 1 - high, 1 - low)}


def measure(
    records: DrawnRecords, models: Mapping[str, CalledRecords], chosen: Bools
) -> dict[str, Any]:
    """Return the number of records and groups of each kind, and the figures of each model.

    Args:
        records: The records.
        models: What each model said of them.
        chosen: Which records to measure.
    """
    kinds, groups = records.kinds_N[chosen], records.groups_N[chosen]
    predictions = {
        name: make_predictions(records, called).select(chosen) for name, called in models.items()
    }
    found = {}
    for kind in ("all", *np.unique(kinds).tolist()):
        is_kind = (kinds == kind) | (kind == "all")
        found[kind] = {
            "num_records": int(is_kind.sum()),
            "num_groups": len(np.unique(groups[is_kind])),
            "models": {
                name: measure_kind(kind, each, is_kind) for name, each in predictions.items()
            },
        }
    return found


def format_table(title: str, found: Mapping[str, Any]) -> str:
    """Return the lines of one length and collection."""
    columns = "".join(f"{name:>28}{'':>27}" for name in found["all"]["models"])
    head = f"{'all':>19}{'called':>8}{'share':>7}{'virus':>20}{'5 %':>7}"
    heads = head * len(found["all"]["models"])
    lines = [title, f"{'':40}{columns}", f"{'kind':24}{'records':>8}{'groups':>8}{heads}"]
    for kind, row in found.items():
        line = f"{kind:24}{row['num_records']:8,}{row['num_groups']:8,}"
        for figures in row["models"].values():
            line += f"{_format_interval(figures['auroc_all']):>19}"
            line += f"{figures['auroc_called']:8.3f}{figures['called_share']:7.3f}"
            virus = _format_interval(figures["virus"]) if "virus" in figures else "-"
            at_5 = (
                f"{figures['found_at_5_percent']:.3f}" if "found_at_5_percent" in figures else "-"
            )
            line += f"{virus:>20}{at_5:>7}"
        lines.append(line)
    errors = (
        f"{name} {figures['calibration_error']:.3f}"
        for name, figures in found["all"]["models"].items()
        if not math.isnan(figures["calibration_error"])
    )
    return "\n".join([*lines, f"calibration error: {', '.join(errors)}", ""])


def _format_interval(estimate: tuple[float, float, float]) -> str:
    value, low, high = estimate
    return f"{value:.3f}" + ("" if math.isnan(low) else f" {low:.3f}-{high:.3f}")


def score_by_kmers(
    train: Genomes, valid: Genomes, records: DrawnRecords, num_chunks: int, seed: int
) -> CalledRecords:
    """Return what 6-mers say of the records, learned from chunks as long."""
    length_bp = records.codes_NL.shape[1]
    num_chunks = min(num_chunks, _BASELINE_BASES // length_bp)
    baseline = fit_baseline(train, valid, length_bp, num_chunks, seed)
    score = baseline.score(count_kmers(records.codes_NL)).double().numpy()
    one = np.ones(len(score), np.int64)
    return CalledRecords(one > 0, score >= 0.5, score, score, one, {})


def main() -> None:
    """Print the tables, and write their figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="packed, with the split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", type=Path, required=True, help="that tools.mini.finish wrote")
    parser.add_argument("--former", type=Path, help="the same of an earlier model")
    parser.add_argument(
        "--genomes", type=Path, nargs="+", required=True, help="packed, with train and valid"
    )
    parser.add_argument("--output", type=Path, required=True, help="for records and figures")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    parser.add_argument("--num-of-kind", type=int, default=250, help="records of a collection")
    parser.add_argument("--num-chunks", type=int, default=20_000, help="for 6-mers to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, valid = (read_genomes(args.genomes, split) for split in ("train", "valid"))
    collections = {path.stem: read_genomes([path], args.split) for path in args.collections}
    models = {"model": args.model} | ({"former": args.former} if args.former else {})
    for length_bp in args.lengths:
        parts = [
            draw_records(genomes, length_bp, args.num_of_kind, args.seed)
            for genomes in collections.values()
        ]
        records = join_records(parts)
        directory = args.output / str(length_bp)
        called = {
            name: call_records(records, model, directory / name) for name, model in models.items()
        }
        called[_BASELINE] = score_by_kmers(train, valid, records, args.num_chunks, args.seed)
        part_N = np.repeat(list(collections), [len(part.kinds_N) for part in parts])
        subsets = {name: part_N == name for name in collections}
        if len(collections) > 1:
            subsets["together"] = part_N != ""
        figures = {name: measure(records, called, chosen) for name, chosen in subsets.items()}
        (directory / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
        for name, found in figures.items():
            print(format_table(f"{name}, {length_bp:,} bp", found), flush=True)


if __name__ == "__main__":
    main()

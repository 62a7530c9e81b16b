"""Turns a model that `tools.mini.train` wrote into the model that ships.

    python -m tools.mini.finish run virnucpro/data/mini work --genomes train_*.npz

It copies the best model of the run. It draws records of several lengths from the valid split, as
many of each kind, and lets `virnucpro predict` score them. The calibration of each classifier is
fitted to these records: kinds weigh as in the training, and every length counts the same. Cross-
fitting over groups gives each record a probability that owes nothing to its relatives. These
probabilities give the calibration error and the default threshold. Each classifier's file also gets
the identities of its encoders' weights, and the origin of the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.mini.calibrating import (
    MAX_FALSE_POSITIVES,
    ScoredRecords,
    choose_threshold,
    cross_fit,
    measure_error,
    share_called,
)
from tools.mini.genomes import Genomes, read_genomes
from tools.mini.records import LENGTHS_BP, call_records, draw_records
from tools.mini.settings import MODEL_NAME, SETTINGS_NAME
from virnucpro import __version__
from virnucpro.backend.weights import digest_files
from virnucpro.config import MINI_LENGTHS_BP
from virnucpro.scoring.classifier_files import read_classifier, save_classifier

# The valid split has been drawn from with small seeds while the model was chosen.
_SEED = 1_000_000


def score_valid(
    valid: Genomes,
    model: Path,
    chunk_length_bp: int,
    work: Path,
    lengths_bp: Sequence[int],
    num_of_kind: int,
) -> tuple[ScoredRecords, dict[str, Any]]:
    """Return the scored valid records of all lengths, and the `run.json` of the last run."""
    parts = []
    run: dict[str, Any] = {}
    for length_bp in lengths_bp:
        records = draw_records(valid, length_bp, num_of_kind, _SEED)
        directory = work / f"{chunk_length_bp}_{length_bp}"
        called = call_records(records, model, directory, chunk_length_bp)
        run = called.run
        has_call = called.has_call
        columns = (
            *(np.full(len(has_call), length_bp), records.kinds_N, records.groups_N),
            *(records.weight_N, called.score, called.num_chunks),
        )
        parts.append([column[has_call] for column in columns])
    return ScoredRecords(*(np.concatenate(column) for column in zip(*parts, strict=True))), run


def describe_origin(genomes: list[Path], run: Path) -> dict[str, Any]:
    """Return what the model was trained on and how, and its figures on the valid split."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = [line for line in log if line["best"]][-1]
    return {
        "virnucpro": __version__,
        "inputs": [
            {"path": path.name, "sha256": digest_files([path]).removeprefix("sha256:")}
            for path in genomes
        ],
        "settings": json.loads((run / SETTINGS_NAME).read_text()),
        "step": best["step"],
        "valid": best["valid"],
    }


def describe_threshold(given: float | None, exempt: Sequence[str]) -> str:
    """Return why the default threshold is what it is."""
    if given is not None:
        return f"{given}, as --threshold says"
    bounds = ", ".join(f"{share} at {bp} bp" for bp, share in MAX_FALSE_POSITIVES.items())
    text = f"the lowest that calls at most these shares of every cellular kind viral: {bounds}"
    return text + (f"; without {', '.join(exempt)}" if exempt else "")


def format_shares(shares: dict[str, dict[int, float]], lengths_bp: Sequence[int]) -> str:
    """Return a table: for each kind and length the share of the records called viral."""
    lines = [f"  {'called viral':24}" + "".join(f"{length_bp:8,}" for length_bp in lengths_bp)]
    for kind, row in shares.items():
        values = (f"{row[bp]:8.3f}" if bp in row else f"{'-':>8}" for bp in lengths_bp)
        lines.append(f"  {kind:24}" + "".join(values))
    return "\n".join(lines)


def main() -> None:
    """Write the finished model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the directory that tools.mini.train wrote")
    parser.add_argument("output", type=Path, help="the directory of the finished model")
    parser.add_argument("work", type=Path, help="a directory for the records and their runs")
    parser.add_argument(
        "--genomes", type=Path, nargs="+", required=True, help="packed, with the split valid"
    )
    parser.add_argument("--num-of-kind", type=int, default=250, help="records of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    parser.add_argument(
        "--exempt", nargs="*", default=[], metavar="KIND", help="kinds that set no threshold"
    )
    parser.add_argument(
        "--threshold", type=float, help="instead of the lowest that keeps the bounds"
    )
    parser.add_argument("--chunk-lengths", type=int, nargs="+", default=MINI_LENGTHS_BP)
    args = parser.parse_args()
    valid = read_genomes(args.genomes, "valid")
    origin = describe_origin(args.genomes, args.run)
    shutil.copytree(args.run / MODEL_NAME, args.output, dirs_exist_ok=True)
    for chunk_length_bp in args.chunk_lengths:
        path = args.output / f"{chunk_length_bp}_model.safetensors"
        records, run = score_valid(
            valid, args.output, chunk_length_bp, args.work, args.lengths, args.num_of_kind
        )
        probability = cross_fit(records, _SEED)
        threshold = args.threshold or choose_threshold(records, probability, args.exempt)
        errors = {bp: round(measure_error(records, probability, bp), 4) for bp in args.lengths}
        state, metadata, changes = read_classifier(path)
        assert metadata is not None, "export_model writes it"
        dna, protein = (backend["weights_identity"] for backend in run["backends"])
        finished = dataclasses.replace(
            metadata,
            dna_weights_identity=dna,
            protein_weights_identity=protein,
            calibration=records.fit(np.ones(len(probability), np.bool_)),
            threshold=threshold,
            origin=origin
            | {
                "cross_fitted_calibration_error": errors,
                "threshold": describe_threshold(args.threshold, args.exempt),
            },
        )
        save_classifier(path, state, finished, changes)
        print(f"{path}: {finished.calibration}, threshold {threshold}")
        print(f"  calibration error: {errors}")
        print(
            format_shares(share_called(records, probability, threshold), args.lengths), flush=True
        )


if __name__ == "__main__":
    main()

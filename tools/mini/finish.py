"""Turns a model that `tools.mini.train` wrote into the model that ships.

It calibrates the model and notes its origin:

    python -m tools.mini.finish genomes.npz run virnucpro/data/mini work

It draws records of several lengths from the valid split and lets `virnucpro predict` call them. The
calibration of each classifier is fitted to these records, and every length counts the same. Each
classifier's file also gets the identities of its encoders' weights, and the origin of the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tools.mini.genomes import Genomes, read_genomes
from tools.mini.records import CHUNK_LENGTHS_BP, LENGTHS_BP, call_records, draw_records
from virnucpro.backend.weights import digest_files
from virnucpro.scoring.calibration import Calibration, fit_calibration
from virnucpro.scoring.classifier_files import read_state, save_classifier
from virnucpro.version import __version__

# The valid split has been drawn from with small seeds while the model was chosen.
_SEED = 1_000_000


def calibrate(
    valid: Genomes, model: Path, chunk_length_bp: int, work: Path, num_records: int
) -> tuple[Calibration, dict[str, Any]]:
    """Return the calibration of one classifier, and the `run.json` of the last of its runs."""
    parts = []
    run: dict[str, Any] = {}
    for length_bp in LENGTHS_BP:
        records = draw_records(valid, length_bp, num_records, _SEED)
        directory = work / f"{chunk_length_bp}_{length_bp}"
        called = call_records(records, model, chunk_length_bp, directory)
        run = called.run
        viral = records.is_viral_N[called.has_call]
        # Each length counts alike among the viral records and among the others.
        weights = np.where(viral, 1 / viral.sum(), 1 / (~viral).sum())
        scored = called.score[called.has_call], called.num_open_chunks[called.has_call]
        parts.append((*scored, viral, weights))
    score, num_open_chunks, is_viral, weights = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    return fit_calibration(score, num_open_chunks, is_viral, weights), run


def describe_origin(genomes: Path, run: Path) -> dict[str, Any]:
    """Return what the model was trained on and how, and its figures on the valid split."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = [line for line in log if line["best"]][-1]
    digest = digest_files([genomes]).removeprefix("sha256:")
    return {
        "virnucpro": __version__,
        "inputs": [{"path": genomes.name, "sha256": digest}],
        "settings": json.loads((run / "settings.json").read_text()),
        "step": best["step"],
        "valid": best["valid"],
    }


def main() -> None:
    """Write the finished model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, help="packed, with the split valid")
    parser.add_argument("run", type=Path, help="the directory that tools.mini.train wrote")
    parser.add_argument("output", type=Path, help="the directory of the finished model")
    parser.add_argument("work", type=Path, help="a directory for the records and their runs")
    parser.add_argument("--num-records", type=int, default=1000, help="of each length")
    parser.add_argument("--chunk-lengths", type=int, nargs="+", default=CHUNK_LENGTHS_BP)
    args = parser.parse_args()
    valid = read_genomes(args.genomes, "valid")
    origin = describe_origin(args.genomes, args.run)
    model = args.run / "model"
    for name in ("dnabert_s", "esm2"):
        shutil.copytree(model / name, args.output / name, dirs_exist_ok=True)
    for length_bp in args.chunk_lengths:
        calibration, run = calibrate(valid, model, length_bp, args.work, args.num_records)
        name = f"{length_bp}_model.safetensors"
        state, metadata = read_state(model / name)
        assert metadata is not None, "tools.mini.train writes it"
        dna, protein = (backend["weights_identity"] for backend in run["backends"])
        finished = dataclasses.replace(
            metadata,
            dna_weights_identity=dna,
            protein_weights_identity=protein,
            calibration=calibration,
            origin=origin,
        )
        save_classifier(args.output / name, state, finished)
        print(f"{args.output / name}: {calibration}", flush=True)


if __name__ == "__main__":
    main()

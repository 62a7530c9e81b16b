"""Measures what a screen saves and loses, on a sample of which the truth is known.

    python -m tools.mini.sample_fragments valid.npz --split valid --output sample
    virnucpro predict sample.fasta -m mini -e 500 -o screen
    python -m tools.measure_screening screen sample.tsv --viral-share 0.05 0.5

It prints, for each bound on the expected loss and each assumed share of viral records: which part
of the records' letters and of the amino acids in open frames the large models would still see, how
many times fewer these are, and which share of the viral records the screen lost.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np

from tools.mini.records import read_calls
from virnucpro.backend.arrays import Int64Array
from virnucpro.config import DEFAULT_THRESHOLD
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.screened import choose_bound
from virnucpro.sequences.frame_store import (
    FrameStore,
    StoreSettings,
    build_frame_store,
    open_frame_store,
)

LOSSES = (0.001, 0.003, 0.01, 0.03, 0.1)


def count_amino_acids(store: FrameStore) -> Int64Array:
    """Return how many amino acids the rows of each record have."""
    rows = np.arange(store.num_rows)
    letters = [len(protein) for protein in store.sequences("protein").get_many(rows)]
    records = store.find_records(store.find_chunks(rows))
    return np.bincount(records, letters, store.num_records).astype(np.int64)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="output directory of predict -m mini")
    parser.add_argument("truth", type=Path, help="table with the columns id and label")
    parser.add_argument("--viral-share", type=float, nargs="+", default=[0.5], metavar="SHARE")
    parser.add_argument("--losses", type=float, nargs="+", default=LOSSES, metavar="SHARE")
    args = parser.parse_args()
    store = open_frame_store(args.run / "checkpoints" / "frames")
    called = read_calls(args.run)
    with args.truth.open(newline="") as file:
        labels = {row["id"]: row["label"] for row in csv.DictReader(file, delimiter="\t")}
    ids = store.record_ids(0, store.num_records)
    is_viral = np.array([labels[record_id] == "virus" for record_id in ids])
    with tempfile.TemporaryDirectory() as directory:
        inputs = [one["path"] for one in store.inputs]
        length_bp = store.chunk_length_bp
        frames = build_frame_store(inputs, Path(directory), StoreSettings(length_bp))
        sizes = {"bases": store.record_lengths, "open frames": count_amino_acids(frames)}
    calibration = Calibration(**called.run["classifier"]["made_for"]["calibration"])
    print(f"{len(ids):,} records, {is_viral.sum():,} viral ({sizes['bases'].sum() / 1e6:.1f} Mb)")
    print(
        "share  loss  bound  " + "".join(f"{name:>21}" for name in sizes) + "  viral records lost"
    )
    for share in args.viral_share:
        probability = calibration.probabilities(called.score, called.num_chunks, share)
        for loss in args.losses:
            bound = choose_bound(probability, loss, DEFAULT_THRESHOLD)
            is_out = probability < bound
            kept = (size[~is_out].sum() / size.sum() for size in sizes.values())
            cells = "".join(f"{part:12.3f} ({1 / part:5.1f}x)" for part in kept)
            lost = np.count_nonzero(is_out & is_viral)
            print(
                f"{share:5g} {loss:5g} {bound:6.4f}{cells}"
                f"  {lost} of {is_viral.sum()} ({lost / is_viral.sum():.3f})"
            )


if __name__ == "__main__":
    main()

"""Prints how well a model tells records of groups that it never saw, beside the k-mer baseline.

Records of each length are drawn from the test split and called by `virnucpro predict`. Those of
300 and 500 bp are single chunks, drawn so that chunks with an open frame are balanced; of longer
ones all are balanced. Records without a call have no part in the figures and are counted apart.

    python -m tools.evaluate_mini genomes.npz test.npz run/model evaluated
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tools.baseline_kmers import LENGTHS_BP, fit_baseline
from tools.mini.figures import figures_by_kind
from tools.mini.genomes import read_genomes
from tools.mini.kmers import count_kmers
from tools.mini.sampling import Sampler

CHUNK_LENGTHS_BP = (300, 500)
LETTERS = np.frombuffer(b"ACGTN", np.uint8)


def predict(
    model: Path, fasta: Path, output: Path, chunk_length_bp: int
) -> npt.NDArray[np.float64]:
    """Return the score of each record of `fasta`; NaN for those without a call."""
    command = [sys.executable, "-m", "virnucpro", "predict", str(fasta), "-o", str(output)]
    command += ["-m", "custom", "-p", str(model / f"{chunk_length_bp}_model.safetensors")]
    command += ["-e", str(chunk_length_bp), "--force", "--no-progress"]
    command += ["--dna-weights", str(model / "dnabert_s"), "--protein-weights", str(model / "esm2")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with (output / "records.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return np.array([np.nan if row["call"] == "none" else float(row["score"]) for row in rows])


def write_records(path: Path, codes_CL: torch.Tensor) -> None:
    """Write chunks as FASTA."""
    with path.open("wb") as file:
        for number, codes_L in enumerate(codes_CL.numpy()):
            file.write(b">record_%d\n%s\n" % (number, LETTERS[codes_L].tobytes()))


def main() -> None:
    """Print the figures, one line for each model, length and kind, and write them as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, help="packed, with the splits train and valid")
    parser.add_argument("test", type=Path, help="packed, with the split test")
    parser.add_argument("model", type=Path, help="the directory that tools.train_mini wrote")
    parser.add_argument("output", type=Path, help="the directory for records and figures")
    parser.add_argument("--split", default="test", help="of the second file")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    parser.add_argument("--num-records", type=int, default=5000, help="of each length")
    parser.add_argument("--num-chunks", type=int, default=20_000, help="for the baseline to learn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    train, valid = (read_genomes(args.genomes, split) for split in ("train", "valid"))
    test = read_genomes(args.test, args.split)
    document = {}
    for length_bp in args.lengths:
        sampler = Sampler(test, length_bp, 3, torch.Generator().manual_seed(args.seed))
        is_chunk = length_bp in CHUNK_LENGTHS_BP
        weights_S = sampler.open_weights if is_chunk else sampler.weight_S
        codes_CL, sequence_C = sampler.draw_chunks(weights_S, args.num_records)
        kinds = np.array(sampler.kind_of(sequence_C))
        is_viral = np.char.startswith(kinds, "viral/")
        fasta = args.output / f"{length_bp}.fasta"
        write_records(fasta, codes_CL)
        chunk_length_bp = length_bp if is_chunk else max(CHUNK_LENGTHS_BP)
        scores = predict(args.model, fasta, args.output / f"predicted_{length_bp}", chunk_length_bp)
        baseline = fit_baseline(train, valid, length_bp, args.num_chunks, args.seed)
        floor = baseline.score(count_kmers(codes_CL)).double().numpy()
        has_call = ~np.isnan(scores)
        figures = {
            name: figures_by_kind(values[has_call], is_viral[has_call], kinds[has_call])
            for name, values in (("model", scores), ("6-mers", floor))
        }
        called = {str(kind): has_call[kinds == kind].mean() for kind in np.unique(kinds)}
        document[length_bp] = {**figures, "called": called}
        print(f"{length_bp} bp ({has_call.sum():,} of {len(kinds):,} records called)")
        print(f"  {'':24}{'model':>8}{'6-mers':>8}{'called':>8}")
        for name, value in figures["model"].items():
            share = f"{called[name]:8.3f}" if name in called else ""
            print(f"  {name:24}{value:8.3f}{figures['6-mers'][name]:8.3f}{share}", flush=True)
    (args.output / "figures.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Prints how well trained models recognize records of groups that they never saw.

    python -m tools.mini.measure test.npz --split test --models run/model

It scores all records, on a GPU if there is one, before a model is finished. Several models are one,
whose logits are the mean of theirs. Records without a call rank last.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tools.mini.genomes import read_genomes
from tools.mini.teachers import read_model
from tools.mini.validation import CHUNK_BP, make_valid_set, measure_records, score_chunks

LENGTHS_BP = (300, 500, 1000, 3000, 10_000)


def main() -> None:
    """Print the figures, one line of JSON for each length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, nargs="+", help="packed, with the split")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    parser.add_argument("--chunk-length", type=int, default=CHUNK_BP, metavar="BP")
    parser.add_argument("--num-chunks", type=int, default=16_384, help="of each length, at least")
    args = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    genomes = read_genomes(args.genomes, args.split).to(device)
    read = [read_model(directory) for directory in args.models]
    models, rule = [model.to(device) for model, _ in read], read[0][1]
    for length_bp in args.lengths:
        valid_set = make_valid_set(genomes, length_bp, args.num_chunks, args.chunk_length)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_gpu):
            logits_C = score_chunks(models, valid_set.codes_CL, rule)
        found = measure_records(logits_C, valid_set)
        print(json.dumps({"length_bp": length_bp, **found}), flush=True)


if __name__ == "__main__":
    main()

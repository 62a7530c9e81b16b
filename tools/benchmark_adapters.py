"""Times a protein encoder with the adapters of a classifier merged into it, and without them.

    python -m tools.benchmark_adapters esm2_t36_3B_UR50D.pt tuned.safetensors --device cuda:0

It prints tokens/s. Both encoders take turns, because the speed of a machine drifts.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from virnucpro.backend.registry import load_backend
from virnucpro.embedding.measuring import make_sequences, measure_encoder
from virnucpro.scoring.classifier_files import read_classifier

NUM_TURNS = 10
SECONDS_OF_A_TURN = 1.0


def main() -> None:
    """Time both in turns, and print the median, the slowest and the fastest turn of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="the weights that the classifier changes")
    parser.add_argument("classifier", type=Path, help="a classifier of `train --finetune protein`")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--num-proteins", type=int, default=200, help="in a batch")
    args = parser.parse_args()
    device = args.device
    classifier = read_classifier(args.classifier)
    metadata = classifier.metadata
    if metadata is None:
        parser.error(f"{args.classifier}: does not say which backend it was trained with")
    backend = load_backend(metadata.protein_backend).backend
    weights = backend.open_weights(args.weights)
    proteins = list(islice(make_sequences("protein", 500), args.num_proteins))
    collate = backend.load_collator(weights)
    batch = collate(np.arange(len(proteins)), proteins)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    encoders = {
        name: backend.load_encoder(weights, dtype=dtype, device=device, attention="auto", **more)
        for name, more in (("without", {}), ("merged", {"changes": classifier.changes["protein"]}))
    }
    speeds: dict[str, list[float]] = {name: [] for name in encoders}
    with torch.inference_mode():
        for _ in range(NUM_TURNS):
            for name, encoder in encoders.items():
                speed = measure_encoder(encoder, batch, device, SECONDS_OF_A_TURN)
                speeds[name].append(speed.tokens_per_s)
    print(f"batches of {len(batch.token_ids_T):,} tokens, tokens/s")
    for name, found in speeds.items():
        low, high = min(found), max(found)
        print(f"{name:<8} {statistics.median(found):>13,.0f} ({low:,.0f} to {high:,.0f})")


if __name__ == "__main__":
    main()

"""Writes a classifier with random weights, for tests and demonstrations.

Its scores spread over (0, 1) for features of unit variance, but they mean nothing. The same
arguments give the same bytes.

    python -m tools.make_classifier_weights classifier.safetensors --dna-dim 768 --protein-dim 2560
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from virnucpro.config import OPEN_RULE, FrameRule
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import save_classifier

NUM_HIDDEN = 512
LOGIT_SPREAD = 2.0


def make_classifier(
    path: Path,
    dna_dim: int,
    protein_dim: int,
    chunk_length_bp: int,
    dna_backend: str = "dnabert-s",
    protein_backend: str = "esm2",
    seed: int = 0,
) -> None:
    """Write a classifier with random weights to `path`."""
    random = np.random.default_rng(seed)
    input_dim = dna_dim + protein_dim
    hidden_weight_HD = random.standard_normal((NUM_HIDDEN, input_dim)) / np.sqrt(input_dim)
    # After ReLU, a standard normal has the variance 1/2 - 1/(2 pi) and a positive mean. Weights
    # that add up to 0 remove the mean: the difference of the logits has mean 0 and this spread.
    output_weight_H = random.standard_normal(NUM_HIDDEN)
    output_weight_H -= output_weight_H.mean()
    variance = (0.5 - 0.5 / np.pi) * np.square(output_weight_H).sum()
    output_weight_H *= LOGIT_SPREAD / np.sqrt(variance)
    arrays = {
        "hidden_layer.weight": hidden_weight_HD,
        "hidden_layer.bias": np.zeros(NUM_HIDDEN),
        "bn1.weight": np.ones(NUM_HIDDEN),
        "bn1.bias": np.zeros(NUM_HIDDEN),
        "bn1.running_mean": np.zeros(NUM_HIDDEN),
        "bn1.running_var": np.ones(NUM_HIDDEN),
        "output_layer.weight": np.stack([-output_weight_H / 2, output_weight_H / 2]),
        "output_layer.bias": np.zeros(2),
    }
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    metadata = ClassifierMetadata(
        dna_backend, protein_backend, dna_dim, protein_dim, chunk_length_bp
    )
    save_classifier(path, state, metadata)


def make_chunk_classifier(
    path: Path, dna_dim: int, protein_dim: int, chunk_length_bp: int, frame_rule: str, seed: int = 0
) -> None:
    """Write a random head over chunks that reads what `frame_rule` says."""
    torch.manual_seed(seed)
    sizes = ChunkHeadSizes(dna_dim, protein_dim)
    metadata = ClassifierMetadata(
        "dnabert-s",
        "esm2",
        dna_dim,
        protein_dim,
        chunk_length_bp,
        frame_rule=frame_rule,
        chunk_head=sizes,
    )
    save_classifier(path, ChunkHead(sizes).state_dict(), metadata)


def main() -> None:
    """Write the classifier that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--dna-dim", type=int, required=True)
    parser.add_argument("--protein-dim", type=int, required=True)
    parser.add_argument("--chunk-length", type=int, default=500)
    parser.add_argument("--frame-rule", type=FrameRule.parse, default=OPEN_RULE)
    args = parser.parse_args()
    sizes = args.dna_dim, args.protein_dim, args.chunk_length
    if args.frame_rule.kind == "stretches":
        make_chunk_classifier(args.path, *sizes, str(args.frame_rule))
    else:
        make_classifier(args.path, *sizes)


if __name__ == "__main__":
    main()

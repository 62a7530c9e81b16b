"""Writes small random weights of everything that `virnucpro predict` needs, for the tests.

The same seed gives the same files. Their predictions mean nothing.

    python -m tools.make_demo_weights w
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from virnucpro_dnabert_s.benchmarking import make_config as make_dnabert_s_config
from virnucpro_esm2.benchmarking import make_config as make_esm2_config

from tools import make_classifier_weights, make_dnabert_s_weights, make_esm2_weights

DNA_DIM = 48
PROTEIN_DIM = 40


def make_demo_weights(directory: Path, seed: int = 0) -> dict[str, str]:
    """Write a DNA model, a protein model and a classifier for 500 and one for 300 bp.

    Returns:
        The settings of `PredictConfig` that use them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dna = make_dnabert_s_weights.write_weights(
        directory / "dnabert_s", make_dnabert_s_config(width=DNA_DIM, num_heads=6), seed=seed
    )
    protein = make_esm2_weights.write_fair_esm(
        directory / "esm2.pt",
        make_esm2_config(num_layers=2, embed_dim=PROTEIN_DIM, num_heads=2),
        seed=seed,
        dtype=torch.float32,
    )
    for length_bp in (300, 500):
        make_classifier_weights.make_classifier(
            directory / f"{length_bp}_model.safetensors",
            dna_dim=DNA_DIM,
            protein_dim=PROTEIN_DIM,
            chunk_length_bp=length_bp,
            seed=seed,
        )
    return {
        "dna_weights": str(dna),
        "protein_weights": str(protein),
        "model_path": str(directory / "500_model.safetensors"),
    }


def main() -> None:
    """Write the weights to the directory that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_demo_weights(args.directory, args.seed)
    print(f"Random demonstration weights, which predict nothing, are in {args.directory}")


if __name__ == "__main__":
    main()

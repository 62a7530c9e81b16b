"""Prints how well a logistic regression on 6-mer frequencies recognizes viral chunks.

    python -m tools.mini.baseline_kmers genomes.npz test.npz

This is the floor for any model. Chunks are drawn as for the small model, and the penalty is chosen
on the valid split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from tools.mini.figures import balanced_predictions
from tools.mini.genomes import Genomes, read_genomes
from tools.mini.kmers import PENALTIES, KmerBaseline, count_kmers
from tools.mini.records import LENGTHS_BP
from tools.mini.sampling import Sampler
from virnucpro.reports.metrics import measure_metrics


def draw_features(
    genomes: Genomes, length_bp: int, num_chunks: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return 6-mer shares, float32 (C, D), and whether each chunk is viral, bool (C,)."""
    sampler = Sampler(genomes, length_bp, word_bp=3, generator=torch.Generator().manual_seed(seed))
    codes_CL, sequence_C = sampler.draw_chunks(sampler.weight_S, num_chunks)
    is_viral = [kind.startswith("viral/") for kind in sampler.kind_of(sequence_C)]
    return count_kmers(codes_CL), torch.tensor(is_viral)


def fit_baseline(
    train: Genomes, valid: Genomes, length_bp: int, num_chunks: int, seed: int
) -> KmerBaseline:
    """Return the baseline whose penalty is the best of `PENALTIES` on `valid`."""
    features_CD, is_viral_C = draw_features(train, length_bp, num_chunks, seed)
    valid_CD, valid_is_viral_C = draw_features(valid, length_bp, num_chunks // 4, seed)
    baselines = [KmerBaseline(features_CD, is_viral_C, penalty) for penalty in PENALTIES]
    return max(baselines, key=lambda one: measure_auroc(one, valid_CD, valid_is_viral_C))


def measure_auroc(baseline: KmerBaseline, features_CD: Tensor, is_viral_C: Tensor) -> float:
    """Return how well the baseline ranks chunks."""
    scores_C = baseline.score(features_CD).numpy()
    return measure_metrics(balanced_predictions(scores_C, scores_C, is_viral_C.numpy()))["auroc"]


def main() -> None:
    """Print the AUROC on the test split for each length."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, help="packed, with the splits train and valid")
    parser.add_argument("test", type=Path, help="packed, with the split test")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS_BP, metavar="BP")
    parser.add_argument("--num-chunks", type=int, default=20_000, help="to learn from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, valid = (read_genomes(args.genomes, split) for split in ("train", "valid"))
    test = read_genomes(args.test, "test")
    for length_bp in args.lengths:
        baseline = fit_baseline(train, valid, length_bp, args.num_chunks, args.seed)
        features_CD, is_viral_C = draw_features(test, length_bp, args.num_chunks // 2, args.seed)
        value = measure_auroc(baseline, features_CD, is_viral_C)
        print(f"{length_bp} bp: AUROC {value:.3f}", flush=True)


if __name__ == "__main__":
    main()

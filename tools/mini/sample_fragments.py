"""Draws a sample like a metagenome: fragments of many lengths, few of them viral.

    python -m tools.mini.sample_fragments valid.npz --split valid --output sample --mb 10

Lengths are uniform in their logarithm. It writes `sample.fasta` and `sample.tsv` with the columns
id, label, class and group.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from tools.mini.genomes import read_genomes
from tools.mini.sampling import Sampler
from virnucpro.checkpoints.whole_files import open_whole

_LETTERS = np.frombuffer(b"ACGTN", np.uint8)


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, nargs="+", help="of tools.mini.pack_genomes")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--output", required=True, help="the beginning of both names")
    parser.add_argument("--mb", type=float, default=10.0, help="million bases to draw")
    parser.add_argument("--lengths", type=int, nargs=2, default=(500, 20_000), metavar="BP")
    parser.add_argument("--viral-bases", type=float, default=0.05, help="their share")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    genomes = read_genomes(args.genomes, args.split)
    rng = np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    left = {
        side: args.mb * 1e6 * share
        for side, share in ((True, args.viral_bases), (False, 1 - args.viral_bases))
    }
    fasta, table = Path(f"{args.output}.fasta"), Path(f"{args.output}.tsv")
    with open_whole(fasta) as sequences, open_whole(table) as labels:
        labels.write("id\tlabel\tclass\tgroup\n")
        for number in range(1_000_000):
            length_bp = int(np.exp(rng.uniform(*np.log(args.lengths))))
            sampler = Sampler(genomes, length_bp, generator)
            is_viral_S = torch.tensor([kind.startswith("viral/") for kind in sampler.kinds])[
                sampler.kind_S
            ]
            # A class is drawn as long as some of its share of the bases is left.
            is_viral = left[True] > 0 and rng.random() < left[True] / sum(left.values())
            codes_CL, (index,) = sampler.draw_chunks(
                sampler.weight_S * (is_viral_S == bool(is_viral)), 1
            )
            kind = sampler.kind_of(torch.tensor([index]))[0]
            group = genomes.names["group"][genomes.labels["group"][index]]
            letters = _LETTERS[codes_CL[0].numpy()].tobytes().decode()
            sequences.write(f">fragment_{number}\n{letters}\n")
            label = "virus" if is_viral else "others"
            labels.write(f"fragment_{number}\t{label}\t{kind}\t{group}\n")
            left[bool(is_viral)] -= length_bp
            if max(left.values()) <= 0:
                break


if __name__ == "__main__":
    main()

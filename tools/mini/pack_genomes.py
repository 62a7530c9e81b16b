"""Packs labelled genomes into one file, which the other programs of this folder read.

    python -m tools.mini.pack_genomes genomes/index.tsv genomes.npz --class-mb 60

The file has 2 bits a base. The index is a table with tabs and a header. Its columns `id`, `file`,
`class`, `sub`, `group`, `split` and `length` describe the sequences of the FASTA files beside it.
The class `viral` is the one that the model learns to find.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

from tools.mini.genomes import LABELS, write_genomes
from virnucpro.sequences.fasta import RecordReader

Row = dict[str, str]


def cap_groups(rows: list[Row], max_bases: int) -> dict[str, int]:
    """Return the bases that each group of one class and split may keep.

    The largest groups are cut to one size, such that all together keep at most `max_bases`.
    """
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row["group"]] += int(row["length"])
    low, high = 0, max(sizes.values())
    while low < high:
        cap = (low + high + 1) // 2
        is_small_enough = sum(min(size, cap) for size in sizes.values()) <= max_bases
        low, high = (cap, high) if is_small_enough else (low, cap - 1)
    return {group: min(size, low) for group, size in sizes.items()}


def choose_lengths(rows: list[Row], class_mb: float, train_split: str = "train") -> dict[str, int]:
    """Return how many bases of each sequence are kept, by id.

    Each class keeps at most `class_mb` million bases of `train_split` and a tenth of that of each
    other split; every sequence of a group that is cut gives the same share, its first bases.
    """
    parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        parts[row["split"], row["class"]].append(row)
    kept = {}
    for (split, _), part in parts.items():
        max_bases = int(class_mb * 1e6 * (1 if split == train_split else 0.1))
        caps = cap_groups(part, max_bases)
        sizes: Counter[str] = Counter()
        for row in part:
            sizes[row["group"]] += int(row["length"])
        for row in part:
            group = row["group"]
            kept[row["id"]] = int(row["length"]) * caps[group] // sizes[group]
    return kept


def main() -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="index.tsv, with the FASTA files beside it")
    parser.add_argument("output", type=Path, help="the .npz to write")
    parser.add_argument("--splits", nargs="+", default=["train", "valid"])
    parser.add_argument("--class-mb", type=float, default=1e6, help="a class's bases, in millions")
    args = parser.parse_args()
    with args.index.open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] in args.splits]
    kept = choose_lengths(rows, args.class_mb)
    row_of_id = {row["id"]: row for row in rows}
    sequences: list[bytes] = []
    labels: dict[str, list[str]] = {name: [] for name in LABELS}
    for name in sorted({row["file"] for row in rows}):
        for record in RecordReader(args.index.parent / name, "dna"):
            if kept.get(record.id):
                sequences.append(record.sequence[: kept[record.id]].encode())
                for label, values in labels.items():
                    values.append(row_of_id[record.id][label])
    write_genomes(args.output, sequences, labels)
    num_bases = sum(map(len, sequences))
    print(f"{args.output}: {len(sequences):,} sequences, {num_bases:,} bases")


if __name__ == "__main__":
    main()

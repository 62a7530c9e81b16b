"""Packs labelled genomes into files, which the other programs of this folder read.

    python -m tools.mini.pack_genomes a/index.tsv b/index.tsv --output train.npz --num-files 3

The files have 2 bits a base. An index is a table with tabs and a header. Its columns `id`, `file`,
`class`, `sub`, `group`, `split` and `length` describe the sequences of the FASTA files beside it.
The class `viral` is the one that the model learns to find. With more files than one, `train.npz`
becomes `train_1.npz`, `train_2.npz` and so on, each with about as many bases of every kind.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

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


def choose_lengths(rows: list[Row], class_mb: float) -> dict[str, int]:
    """Return how many bases of each sequence are kept, by id.

    Each class keeps at most `class_mb` million bases of the split `train`, and a tenth of that of
    each other split; every sequence of a group that is cut gives the same share, its first bases.
    """
    parts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        parts[row["split"], row["class"]].append(row)
    kept = {}
    for (split, _), part in parts.items():
        max_bases = int(class_mb * 1e6 * (1 if split == "train" else 0.1))
        caps = cap_groups(part, max_bases)
        sizes: Counter[str] = Counter()
        for row in part:
            sizes[row["group"]] += int(row["length"])
        for row in part:
            group = row["group"]
            kept[row["id"]] = int(row["length"]) * caps[group] // sizes[group]
    return kept


def read_sequences(
    rows: list[Row], kept: dict[str, int]
) -> tuple[list[bytes], dict[str, list[str]]]:
    """Return the letters that are kept of each sequence, and its labels.

    Args:
        rows: Rows of indexes; `path` is the FASTA file of each.
        kept: How many letters of each sequence are kept, by id.
    """
    row_of_id = {row["id"]: row for row in rows}
    sequences: list[bytes] = []
    labels: dict[str, list[str]] = {name: [] for name in LABELS}
    for path in sorted({row["path"] for row in rows}):
        for record in RecordReader(Path(path), "dna"):
            if kept.get(record.id):
                sequences.append(record.sequence[: kept[record.id]].encode())
                for label, values in labels.items():
                    values.append(row_of_id[record.id][label])
    return sequences, labels


def main() -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("indexes", type=Path, nargs="+", help="index.tsv, FASTA files beside it")
    parser.add_argument("--output", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--num-files", type=int, default=1, help="that the output is divided into")
    parser.add_argument("--splits", nargs="+", default=["train", "valid"])
    parser.add_argument("--class-mb", type=float, default=1e6, help="a class's bases, in millions")
    args = parser.parse_args()
    rows = []
    for index in args.indexes:
        with index.open(newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row["split"] in args.splits:
                    rows.append({**row, "path": str(index.parent / row["file"])})
    sequences, labels = read_sequences(rows, choose_lengths(rows, args.class_mb))
    # At random, so that each file has a share of every kind.
    order_S = np.random.default_rng(0).permutation(len(sequences))
    end_S = np.cumsum([len(sequences[index]) for index in order_S])
    part_S = np.minimum(end_S * args.num_files // end_S[-1], args.num_files - 1)
    for part in range(args.num_files):
        number = f"_{part + 1}" if args.num_files > 1 else ""
        path = args.output.with_stem(f"{args.output.stem}{number}")
        chosen = np.sort(order_S[part_S == part]).tolist()
        write_genomes(
            path,
            [sequences[index] for index in chosen],
            {name: [values[index] for index in chosen] for name, values in labels.items()},
        )
        num_bases = sum(len(sequences[index]) for index in chosen)
        print(f"{path}: {len(chosen):,} sequences, {num_bases:,} bases", flush=True)


if __name__ == "__main__":
    main()

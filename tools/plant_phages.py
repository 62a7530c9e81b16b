"""Plants phages in bacterial contigs, and writes bacterial contigs without any.

    python -m tools.plant_phages genomes/index.tsv more/index.tsv --split valid --output planted

An index is a table with tabs and a header. Its columns `id`, `file`, `class`, `sub`, `group`,
`split`, `length` and `prophage_like` describe the sequences of the FASTA files beside it. Sequences
in which somebody found a phage are left out, and so are those of a table that
`tools.find_prophages` wrote (`--without`).

`contigs.fasta` has the planted contigs. Each is a window of 100 to 200 kb of a bacterial chromosome
with a piece of a phage inserted, at least 10 kb from the ends. Groups are drawn with equal chances,
first of bacteria and of phages, and then a sequence of the group. The chromosomes follow as they
are, in turns from each group. `truth.tsv` has a line for each contig: where its phage is, if any.

Windows start at multiples of 1,000 bp, and phages at the same remainder as the place where they go.
So most chunks of 1,000 or 500 bp of different contigs are the same, and `virnucpro predict` embeds
each once: 600 contigs of 150 kb take as long as the genomes that they come from. Where a phage
begins in a chunk is still random.

With `--whole`, nothing is planted: `bacteria.fasta` and `phages.fasta` have whole genomes, in turns
from each group. `tools.fit_regions` reads runs over them.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from virnucpro.checkpoints.whole_files import open_whole
from virnucpro.reports.tables import read_table
from virnucpro.sequences.fasta import RecordReader
from virnucpro.sequences.frames import reverse_complement

PHAGE_LENGTHS_BP = (10_000, 20_000, 40_000)
CONTIG_BP = (100_000, 200_000)
MARGIN_BP = 10_000
"""Between a phage and the ends of its contig."""

CHUNK_BP = 1000


class Genome(NamedTuple):
    """A labelled sequence.

    Attributes:
        id: Its name in the index.
        sequence: Its letters.
    """

    id: str
    sequence: str


Groups = dict[str, list[Genome]]


class Planted(NamedTuple):
    """A contig with a phage.

    Attributes:
        sequence: The letters of the contig.
        start: Where the phage starts, from 0.
        end: Where it ends.
        source: The ids of the two genomes.
    """

    sequence: str
    start: int
    end: int
    source: tuple[str, str]


def read_groups(indexes: list[Path], split: str, kind: tuple[str, str]) -> Groups:
    """Return the sequences of one split and kind by group, without those with known phages."""
    group_of_id: dict[str, str] = {}
    paths = set()
    for index in indexes:
        with index.open(newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                is_wanted = (row["split"], row["class"], row["sub"]) == (split, *kind)
                if is_wanted and row["prophage_like"] == "0":
                    group_of_id[row["id"]] = row["group"]
                    paths.add(index.parent / row["file"])
    groups: Groups = defaultdict(list)
    for path in sorted(paths):
        for record in RecordReader(path, "dna"):
            if record.id in group_of_id:
                groups[group_of_id[record.id]].append(Genome(record.id, record.sequence))
    return dict(sorted(groups.items()))


def draw_genome(rng: random.Random, groups: Groups, min_length_bp: int) -> Genome:
    """Return a genome of at least this length, of a group drawn with equal chances."""
    long_enough = [
        [genome for genome in group if len(genome.sequence) >= min_length_bp]
        for group in groups.values()
    ]
    return rng.choice(rng.choice([group for group in long_enough if group]))


def plant(rng: random.Random, bacteria: Groups, phages: Groups, phage_bp: int) -> Planted:
    """Return a contig with a phage of this length."""
    host = draw_genome(rng, bacteria, CONTIG_BP[0])
    size = _draw_step(rng, CONTIG_BP[0], min(CONTIG_BP[1], len(host.sequence)))
    first = _draw_step(rng, 0, len(host.sequence) - size)
    contig = host.sequence[first : first + size]
    start = rng.randint(MARGIN_BP, size - MARGIN_BP)
    # A chunk more, so that the phage has room for any remainder.
    phage = draw_genome(rng, phages, phage_bp + CHUNK_BP)
    begin = start % CHUNK_BP
    begin += _draw_step(rng, 0, len(phage.sequence) - phage_bp - begin)
    piece = phage.sequence[begin : begin + phage_bp]
    sequence = contig[:start] + piece + contig[start:]
    return Planted(sequence, start, start + phage_bp, (host.id, phage.id))


def _draw_step(rng: random.Random, least: int, most: int) -> int:
    return CHUNK_BP * rng.randint(-(-least // CHUNK_BP), most // CHUNK_BP)


def draw_whole(
    rng: random.Random, groups: Groups, min_length_bp: int, total_bp: int
) -> Iterator[Genome]:
    """Yield genomes of at least this length, by turns from each group, until there are enough."""
    queues = [
        rng.sample(long_enough, len(long_enough))
        for group in groups.values()
        if (long_enough := [genome for genome in group if len(genome.sequence) >= min_length_bp])
    ]
    num_bp = 0
    while any(queues) and num_bp < total_bp:
        for queue in rng.sample(queues, len(queues)):
            if queue and num_bp < total_bp:
                genome = queue.pop()
                num_bp += len(genome.sequence)
                yield genome


def leave_out(groups: Groups, table: Path | None) -> Groups:
    """Return the groups without the sequences that a table names."""
    if table is None:
        return groups
    ids = {row["id"] for _, row in read_table(table, ("id",))}
    left = {name: [one for one in group if one.id not in ids] for name, group in groups.items()}
    return {name: group for name, group in left.items() if group}


def write_planted(args: argparse.Namespace) -> None:
    """Write contigs.fasta and truth.tsv."""
    bacteria = read_groups(args.indexes, args.split, ("bacteria", "chromosome"))
    bacteria = leave_out(bacteria, args.without)
    phages = read_groups(args.indexes, args.split, ("viral", "phage"))
    # Each phage lies on a strand of its own, so that its chunks are the same wherever it is.
    rng = random.Random(args.seed)
    for group in phages.values():
        for index, genome in enumerate(group):
            if rng.random() < 0.5:
                sequence = reverse_complement(genome.sequence.encode()).decode()
                group[index] = genome._replace(sequence=sequence)
    args.output.mkdir(parents=True, exist_ok=True)
    with (
        open_whole(args.output / "contigs.fasta") as fasta,
        open_whole(args.output / "truth.tsv") as truth,
    ):
        truth.write("record_id\tstart\tend\tbacterium\tphage\n")
        for phage_bp in PHAGE_LENGTHS_BP:
            for number in range(args.num):
                planted = plant(rng, bacteria, phages, phage_bp)
                name = f"planted_{phage_bp}_{number}"
                fasta.write(f">{name}\n{planted.sequence}\n")
                line = (name, planted.start, planted.end, *planted.source)
                truth.write("\t".join(map(str, line)) + "\n")
        for genome in draw_whole(rng, bacteria, CONTIG_BP[0], int(args.bacteria_mb * 1e6)):
            num_bp = len(genome.sequence) // CHUNK_BP * CHUNK_BP
            fasta.write(f">{genome.id}\n{genome.sequence[:num_bp]}\n")
            truth.write(f"{genome.id}\t-\t-\t{genome.id}\t-\n")


def write_whole(args: argparse.Namespace) -> None:
    """Write bacteria.fasta and phages.fasta."""
    args.output.mkdir(parents=True, exist_ok=True)
    for name, kind, min_length_bp, num_mb in (
        ("bacteria", ("bacteria", "chromosome"), CONTIG_BP[0], args.bacteria_mb),
        ("phages", ("viral", "phage"), PHAGE_LENGTHS_BP[0], args.phages_mb),
    ):
        groups = leave_out(read_groups(args.indexes, args.split, kind), args.without)
        drawn = draw_whole(random.Random(args.seed), groups, min_length_bp, int(num_mb * 1e6))
        with open_whole(args.output / f"{name}.fasta") as fasta:
            fasta.writelines(f">{genome.id}\n{genome.sequence}\n" for genome in drawn)


def main() -> None:
    """Write what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("indexes", type=Path, nargs="+", help="index.tsv, FASTA files beside it")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--num", type=int, default=200, help="planted contigs of each length")
    parser.add_argument("--bacteria-mb", type=float, default=5, help="of whole bacteria")
    parser.add_argument("--phages-mb", type=float, default=5, help="of whole phages")
    parser.add_argument("--without", type=Path, help="table of tools.find_prophages")
    parser.add_argument("--whole", action="store_true", help="plant nothing")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    (write_whole if args.whole else write_planted)(args)


if __name__ == "__main__":
    main()

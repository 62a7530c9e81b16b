"""Lists the bacterial sequences in which genes like those of phages lie side by side.

    pip install pyrodigal
    python -m tools.find_prophages genomes/index.tsv more/index.tsv --split valid \
      --output prophages.tsv

`tools.plant_phages --without prophages.tsv` leaves these sequences out: a viral region in them may
be a prophage that nobody cut out, and not a false one. No model of this project plays a part.

The genes are those that pyrodigal finds. A gene is like one of a phage of train or valid if the
two proteins share three words of five amino acids, and their best local alignment (BLOSUM62, gaps
of -11 and -1) scores at least 120. The table has each sequence with eight such genes within 20 kb,
and the window of 20 kb that has the most. A few such genes say nothing, because some genes of
phages are also those of their hosts.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from Bio.Align import PairwiseAligner, substitution_matrices

from tools.plant_phages import CONTIG_BP, Groups, read_groups
from tools.write_genbank import Gene, find_genes
from virnucpro.checkpoints.whole_files import open_whole

WINDOW_BP = 20_000
MIN_GENES = 8
_MIN_SCORE = 120
_MIN_WORDS = 3
_WORD = 5
_MOST_ALIGNED = 8


def find_whole_genes(sequence: str) -> Iterator[Gene]:
    """Yield the genes of a sequence whose proteins consist of the twenty amino acids."""
    for gene in find_genes(sequence.encode()):
        if not {"X", "*"} & set(gene.protein):
            yield gene


def cut_words(protein: str) -> list[str]:
    """Return the different words of a protein, in their order."""
    # No set: its order differs from run to run, and decides which of equals are aligned.
    return list(dict.fromkeys(protein[at : at + _WORD] for at in range(len(protein) - _WORD + 1)))


class PhageProteins:
    """Proteins of phages, to which others are compared."""

    def __init__(self, proteins: list[str]) -> None:
        self._proteins = proteins
        self._with_word: dict[str, list[int]] = defaultdict(list)
        for number, protein in enumerate(proteins):
            for word in cut_words(protein):
                self._with_word[word].append(number)
        self._aligner = PairwiseAligner(mode="local", open_gap_score=-11, extend_gap_score=-1)
        self._aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")

    def has_like(self, protein: str) -> bool:
        """Return whether a protein is like one of them."""
        shared = Counter(
            number for word in cut_words(protein) for number in self._with_word.get(word, ())
        )
        return any(
            self._aligner.score(protein, self._proteins[number]) >= _MIN_SCORE
            for number, num_words in shared.most_common(_MOST_ALIGNED)
            if num_words >= _MIN_WORDS
        )


def find_densest(begins: list[int]) -> tuple[int, int]:
    """Return where the window begins that has the most of these genes, and how many it has."""
    ordered = np.sort(np.array(begins, np.int64))
    counts = np.searchsorted(ordered, ordered + WINDOW_BP) - np.arange(len(ordered))
    if not len(counts):
        return 0, 0
    first = int(counts.argmax())
    return int(ordered[first]), int(counts[first])


def read_phages(indexes: list[Path]) -> PhageProteins:
    """Return the proteins of the phages of train and valid."""
    groups = [read_groups(indexes, split, ("viral", "phage")) for split in ("train", "valid")]
    genomes = [one for each in groups for group in each.values() for one in group]
    return PhageProteins(
        [gene.protein for one in genomes for gene in find_whole_genes(one.sequence)]
    )


def list_prophages(bacteria: Groups, phages: PhageProteins) -> Iterator[tuple[str, int, int]]:
    """Yield the id of each sequence of the table, where its window begins, and its genes."""
    for group in bacteria.values():
        for genome in group:
            if len(genome.sequence) < CONTIG_BP[0]:
                continue
            genes = find_whole_genes(genome.sequence)
            begin, num = find_densest([one.begin for one in genes if phages.has_like(one.protein)])
            if num >= MIN_GENES:
                yield genome.id, begin, num


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("indexes", type=Path, nargs="+", help="index.tsv, FASTA files beside it")
    parser.add_argument("--split", default="valid", help="of the bacteria")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    bacteria = read_groups(args.indexes, args.split, ("bacteria", "chromosome"))
    # Whole: a failure on the way must not leave a table that names a few of them only.
    with open_whole(args.output) as file:
        file.write("id\tstart\tend\tphage_genes\n")
        for name, begin, num in list_prophages(bacteria, read_phages(args.indexes)):
            file.write(f"{name}\t{begin}\t{begin + WINDOW_BP}\t{num}\n")


if __name__ == "__main__":
    main()

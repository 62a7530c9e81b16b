"""Writes contigs as GenBank, with the genes that pyrodigal finds, for programs that want genes.

pip install pyrodigal biopython
python -m tools.write_genbank planted/contigs.fasta planted/contigs.gbk
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Gene(NamedTuple):
    """A gene that pyrodigal found.

    Attributes:
        begin: Where it begins, from 0.
        end: The position behind it.
        strand: 1 or -1.
        protein: Without the stop at its end.
    """

    begin: int
    end: int
    strand: int
    protein: str


def find_genes(sequence: bytes) -> Iterator[Gene]:
    """Yield the genes of a sequence."""
    import pyrodigal

    # Of metagenomes: a contig or a phage is too short to train on.
    for gene in pyrodigal.GeneFinder(meta=True).find_genes(sequence):
        yield Gene(gene.begin - 1, gene.end, gene.strand, gene.translate().rstrip("*"))


def annotate(path: Path) -> Iterator[Any]:
    """Yield the records with their genes as coding sequences without a known function."""
    from Bio import SeqIO
    from Bio.SeqFeature import SeqFeature, SimpleLocation

    for record in SeqIO.parse(path, "fasta"):
        record.annotations["molecule_type"] = "DNA"
        for number, gene in enumerate(find_genes(bytes(record.seq)), start=1):
            about = {
                "locus_tag": [f"{record.id}_{number}"],
                "product": ["hypothetical protein"],
                "translation": [gene.protein],
            }
            place = SimpleLocation(gene.begin, gene.end, gene.strand)
            record.features.append(SeqFeature(place, type="CDS", qualifiers=about))
        yield record


def main() -> None:
    """Write the file."""
    from Bio import SeqIO

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contigs", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    SeqIO.write(annotate(args.contigs), args.output, "genbank")


if __name__ == "__main__":
    main()

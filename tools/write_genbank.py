"""Writes contigs as GenBank, with the genes that pyrodigal finds, for programs that want genes.

pip install pyrodigal biopython
python -m tools.write_genbank planted/contigs.fasta planted/contigs.gbk
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def find_genes(path: Path) -> Iterator[Any]:
    """Yield the records with their genes as coding sequences without a known function."""
    import pyrodigal
    from Bio import SeqIO
    from Bio.SeqFeature import SeqFeature, SimpleLocation

    # Of metagenomes: a contig is too short to train on.
    finder = pyrodigal.GeneFinder(meta=True)
    for record in SeqIO.parse(path, "fasta"):
        record.annotations["molecule_type"] = "DNA"
        for number, gene in enumerate(finder.find_genes(bytes(record.seq)), start=1):
            about = {
                "locus_tag": [f"{record.id}_{number}"],
                "product": ["hypothetical protein"],
                "translation": [gene.translate().rstrip("*")],
            }
            place = SimpleLocation(gene.begin - 1, gene.end, gene.strand)
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
    SeqIO.write(find_genes(args.contigs), args.output, "genbank")


if __name__ == "__main__":
    main()

"""Prints how well the viral regions of a run are those that `tools.plant_phages` planted.

    python -m tools.plant_phages genomes/index.tsv --split test --output planted
    virnucpro predict planted/contigs.fasta -m mini -o planted/run
    python -m tools.measure_regions planted/run planted/truth.tsv

`--bed` measures the regions that another program found in the same contigs.

A phage is found if the overlap of a region with it, divided by what both cover together, is at
least 0.5. The intervals (95 %) resample the phages' genomes, because pieces of one genome resemble
each other. The error of a boundary is that of the found phages: the distance of the start of the
region from that of the phage, and the same for the end. A false region has at least 5 kb and lies
in a contig without a planted phage.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from virnucpro.reports.tables import read_table

MIN_OVERLAP = 0.5
FALSE_BP = 5_000
_NUM_RESAMPLES = 2_000

Span = tuple[int, int]


class Phage(NamedTuple):
    """A planted phage, and the region that fits it best.

    Attributes:
        length: In bp.
        genome: The id of the genome that it is a piece of.
        overlap: Intersection over union; 0 without a region.
        errors: The distances of the two boundaries in bp.
    """

    length: int
    genome: str
    overlap: float
    errors: Span


def read_regions(path: Path) -> dict[str, list[Span]]:
    """Return the regions of each record, from `viral_regions.tsv`."""
    regions: dict[str, list[Span]] = defaultdict(list)
    for _, line in read_table(path, ("record_id", "start", "end")):
        regions[line["record_id"]].append((int(line["start"]), int(line["end"])))
    return regions


def read_bed(path: Path) -> dict[str, list[Span]]:
    """Return the regions of each record, from the first three columns of a BED file."""
    regions: dict[str, list[Span]] = defaultdict(list)
    for line in path.read_text().splitlines():
        name, start, end = line.split("\t")[:3]
        regions[name].append((int(start), int(end)))
    return regions


def match(span: Span, regions: list[Span]) -> tuple[float, Span]:
    """Return the largest overlap of a region with a span, and the errors of its boundaries."""
    best = (0.0, (0, 0))
    for start, end in regions:
        shared = min(end, span[1]) - max(start, span[0])
        overlap = shared / (max(end, span[1]) - min(start, span[0]))
        best = max(best, (overlap, (abs(start - span[0]), abs(end - span[1]))))
    return best


def estimate_share(phages: list[Phage]) -> tuple[float, float, float]:
    """Return the share of phages that are found, and its interval."""
    found: dict[str, list[bool]] = defaultdict(list)
    for phage in phages:
        found[phage.genome].append(phage.overlap >= MIN_OVERLAP)
    hits, sizes = (np.array([count(each) for each in found.values()]) for count in (sum, len))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(hits), size=(_NUM_RESAMPLES, len(hits)))
    shares = hits[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(shares, [2.5, 97.5])
    return hits.sum() / sizes.sum(), float(low), float(high)


def measure(regions: dict[str, list[Span]], truth: Path, lengths: dict[str, int]) -> str:
    """Return the figures as lines of text.

    Args:
        regions: The regions of each record.
        truth: What `tools.plant_phages` wrote.
        lengths: The length of each record.
    """
    phages: dict[int, list[Phage]] = defaultdict(list)
    num_false, num_bp, num_contigs = 0, 0, 0
    for _, line in read_table(truth, ("record_id", "start", "end", "phage")):
        found = regions.get(line["record_id"], [])
        if line["phage"] == "-":
            num_contigs += 1
            num_bp += lengths[line["record_id"]]
            num_false += sum(end - start >= FALSE_BP for start, end in found)
            continue
        span = (int(line["start"]), int(line["end"]))
        overlap, errors = match(span, found)
        length = span[1] - span[0]
        phages[length].append(Phage(length, line["phage"], overlap, errors))
    lines = ["phage_bp\tcontigs\tgenomes\tfound\tinterval\tmedian_error_bp"]
    for length, group in sorted(phages.items()):
        share, low, high = estimate_share(group)
        found_errors = [each.errors for each in group if each.overlap >= MIN_OVERLAP]
        error = f"{np.median(found_errors):.0f}" if found_errors else "-"
        genomes = len({each.genome for each in group})
        lines.append(
            f"{length}\t{len(group)}\t{genomes}\t{share:.3f}\t{low:.3f}-{high:.3f}\t{error}"
        )
    if num_bp:
        lines.append(
            f"false regions: {num_false} in {num_bp / 1e6:.2f} Mb of {num_contigs} contigs, "
            f"{num_false / num_bp * 1e6:.2f} per Mb"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the figures of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="output directory of virnucpro predict")
    parser.add_argument("truth", type=Path, help="truth.tsv that tools.plant_phages wrote")
    parser.add_argument("--bed", type=Path, help="regions that another program found")
    args = parser.parse_args()
    lengths = {
        line["record_id"]: int(line["length"])
        for _, line in read_table(args.run / "records.tsv", ("record_id", "length"))
    }
    found = read_bed(args.bed) if args.bed else read_regions(args.run / "viral_regions.tsv")
    print(measure(found, args.truth, lengths))


if __name__ == "__main__":
    main()

"""Prints what windows at a finer step would gain at the ends of viral regions.

    python -m tools.measure_finer_windows planted/contigs.fasta planted/run planted/truth.tsv

Takes a run over contigs of `tools.plant_phages`, and the regions that found a phage. At each end of
such a region, windows of 500 bp are scored at a step of 100 bp, from 1,500 bp before the end to
1,500 bp behind it. The end is then put where the windows on its two sides differ most, within 1,000
bp. The printed errors are the distances to the end of the phage.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from tools.measure_regions import MIN_OVERLAP, match, read_regions
from virnucpro import Scorer
from virnucpro.backend.arrays import Float64Array, Int64Array
from virnucpro.reports.tables import read_table
from virnucpro.sequences.fasta import RecordReader

WINDOW_BP = 500
STEP_BP = 100
REACH_BP = 1_000
# A single window can neither make nor break an end.
_MOST = 2.0


def find_ends(run: Path, truth: Path) -> dict[str, list[tuple[int, int]]]:
    """Return the two ends of the region that found each phage, each with that of the phage."""
    regions = read_regions(run / "viral_regions.tsv")
    ends = {}
    for _, line in read_table(truth, ("record_id", "start", "end", "phage")):
        if line["phage"] == "-":
            continue
        span = (int(line["start"]), int(line["end"]))
        for region in regions.get(line["record_id"], []):
            if match(span, [region])[0] >= MIN_OVERLAP:
                ends[line["record_id"]] = list(zip(region, span, strict=True))
    return ends


def place_end(starts: Int64Array, logits: Float64Array, end: int, is_first: bool) -> int:
    """Return the place within reach that parts viral windows from others best."""
    places = np.arange(end - REACH_BP, end + REACH_BP + 1, STEP_BP // 2)
    # From -1 for a window that lies before a place to 1 for one behind it.
    side = 2 * np.clip((starts + WINDOW_BP - places[:, None]) / WINDOW_BP, 0, 1) - 1
    worth = (side * np.clip(logits, -_MOST, _MOST)).sum(1)
    return int(places[worth.argmax() if is_first else worth.argmin()])


def main() -> None:
    """Print the errors before and after."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contigs", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--num", type=int, default=100, help="contigs, drawn at random")
    args = parser.parse_args()
    ends = find_ends(args.run, args.truth)
    names = set(random.Random(0).sample(sorted(ends), min(args.num, len(ends))))
    windows, places = {}, []
    for record in RecordReader(args.contigs, "dna"):
        for end, true_end in ends[record.id] if record.id in names else ():
            margin = REACH_BP + WINDOW_BP
            starts = np.arange(max(0, end - margin), end + margin - WINDOW_BP + 1, STEP_BP)
            starts = starts[starts + WINDOW_BP <= len(record.sequence)]
            places.append((starts, end, true_end))
            for start in starts.tolist():
                windows[f"{len(places)} {start}"] = record.sequence[start : start + WINDOW_BP]
    score = Scorer("mini").score(windows).calls.score.clip(1e-9, 1 - 1e-9)
    logits = np.nan_to_num(np.log(score) - np.log1p(-score))
    before, after, at = [], [], 0
    for number, (starts, end, true_end) in enumerate(places):
        found = logits[at : at + len(starts)]
        at += len(starts)
        before.append(abs(end - true_end))
        after.append(abs(place_end(starts, found, end, number % 2 == 0) - true_end))
    print(f"{len(places)} ends, {len(windows)} windows")
    for name, errors in (("before", before), ("after", after)):
        print(f"{name}: median error {np.median(errors):.0f} bp, mean {np.mean(errors):.0f} bp")


if __name__ == "__main__":
    main()

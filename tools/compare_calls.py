"""Prints the calls of a finished run beside the known labels of its records.

python -m tools.compare_calls demo examples/labels.tsv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

COLUMNS = "{:<28}{:<30}{:<9}{:<9}{}"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table with a header, by the names of its columns."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the output directory of virnucpro predict")
    parser.add_argument("labels", type=Path, help="a table with the columns id, label and group")
    args = parser.parse_args()
    found = {row["record_id"]: row for row in read_rows(args.run / "records.tsv")}
    print(COLUMNS.format("record", "from", "known as", "call", "probability"))
    for known in read_rows(args.labels):
        row = found[known["id"]]
        probability = "-" if row["probability"] == "NA" else f"{float(row['probability']):.2f}"
        print(COLUMNS.format(known["id"], known["group"], known["label"], row["call"], probability))


if __name__ == "__main__":
    main()

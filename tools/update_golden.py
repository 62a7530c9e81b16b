"""Rewrites the golden tables of tests/workflows/test_predict.py, and examples/calls.tsv.

Look at the difference before you commit it.

    python -m tools.update_golden
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tools.make_demo_weights import make_demo_weights
from virnucpro import PredictConfig, predict

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests/data/golden"
CALLS = REPOSITORY / "examples/calls.tsv"
INPUTS = (str(REPOSITORY / "examples/example.fasta"), str(GOLDEN / "odd_records.fasta"))


def main() -> None:
    """Run `predict` and copy its three tables; write the small model's calls of the example."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        weights: dict[str, Any] = make_demo_weights(Path(directory) / "weights")
        output_dir = Path(directory) / "golden"
        layout = predict(
            PredictConfig(inputs=INPUTS, output_dir=output_dir, device="cpu", **weights)
        ).directory
        for path in (layout.prediction_results, layout.highest_scores, layout.records_tsv):
            shutil.copy(path, GOLDEN / path.name)
            print(f"wrote {GOLDEN / path.name}")
        config = PredictConfig(
            inputs=INPUTS[:1], model_type="mini", output_dir=output_dir / "mini", device="cpu"
        )
        _write_calls(predict(config).directory.records_tsv)


def _write_calls(records_tsv: Path) -> None:
    columns = ("record_id", "call", "probability")
    with records_tsv.open(newline="") as table, CALLS.open("w") as file:
        print(*columns, sep="\t", file=file)
        for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            print(*(row[column] for column in columns), sep="\t", file=file)
    print(f"wrote {CALLS}")


if __name__ == "__main__":
    main()

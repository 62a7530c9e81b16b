"""Rewrites the golden tables of tests/workflows/test_predict.py.

Look at the difference before you commit it.

    python -m tools.update_golden
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tools.make_demo_weights import make_demo_weights
from virnucpro import PredictConfig, predict

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests/data/golden"
INPUTS = (
    str(REPOSITORY / "examples/example.fasta"),
    str(GOLDEN / "odd_records.fasta"),
)


def main() -> None:
    """Run `predict` and copy its three tables."""
    with tempfile.TemporaryDirectory() as directory:
        weights = make_demo_weights(Path(directory) / "weights")
        output_dir = Path(directory) / "golden"
        layout = predict(
            PredictConfig(inputs=INPUTS, output_dir=output_dir, device="cpu", **weights)
        ).directory
        for path in (layout.prediction_results, layout.highest_scores, layout.records_tsv):
            shutil.copy(path, GOLDEN / path.name)
            print(f"wrote {GOLDEN / path.name}")


if __name__ == "__main__":
    main()

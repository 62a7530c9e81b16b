"""Draws how well models of several sizes recognize viral records: the front of size and AUROC.

    python -m tools.mini.measure train_*.npz --models size_2/model > size_2/measured.jsonl
    python -m tools.mini.draw_sizes size_1 size_2 size_4 --output docs/assets/mini-sizes.svg

Each directory is the output of a training, with what `tools.mini.measure` has printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from tools.mini.settings import MODEL_NAME
from tools.mini.teachers import read_model

MEASURED_NAME = "measured.jsonl"


class Measured(NamedTuple):
    """A model of some size.

    Attributes:
        num_layers: Layers of the protein encoder.
        millions: Parameters of both encoders and the head, in millions.
        auroc: By the length of the records, in bp.
    """

    num_layers: int
    millions: float
    auroc: dict[int, float]


def read_measured(directory: Path) -> Measured:
    """Return the size of the model in the output of a training, and how good it is."""
    model, _ = read_model(directory / MODEL_NAME)
    parts = (model.dna, model.protein, model.head)
    num_parameters = sum(one.numel() for part in parts for one in part.parameters())
    lines = (directory / MEASURED_NAME).read_text().splitlines()
    found = {line["length_bp"]: line["all"] for line in map(json.loads, lines)}
    return Measured(model.sizes.protein_layers, num_parameters / 1e6, found)


def draw_sizes(models: list[Measured]) -> Figure:
    """Return the figure: a line for each length of records, over the numbers of parameters."""
    models = sorted(models, key=lambda one: one.millions)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    millions = [one.millions for one in models]
    for length_bp in models[0].auroc:
        auroc = [one.auroc[length_bp] for one in models]
        axes.plot(millions, auroc, marker="o")
        axes.annotate(
            f"{length_bp:,} bp", (millions[-1], auroc[-1]), (6, -4), textcoords="offset points"
        )
    labels = [f"{one.millions:.1f}\n{one.num_layers}" for one in models]
    axes.set_xscale("log")
    axes.set_xticks(millions, labels)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("parameters in millions, layers of the protein encoder")
    axes.set_ylabel("AUROC on valid")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    return figure


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="outputs of tools.mini.train")
    parser.add_argument("--output", type=Path, required=True, help="an .svg or a .png")
    args = parser.parse_args()
    figure = draw_sizes([read_measured(run) for run in args.runs])
    # Letters as text, and no date, so that the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "virnucpro"}):
        figure.savefig(args.output, metadata={"Date": None} if args.output.suffix == ".svg" else {})


if __name__ == "__main__":
    main()

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from tests.tools.mini.small import SIZES
from tools.mini import draw_sizes
from tools.mini.export import export_model
from tools.mini.model import MiniModel
from virnucpro.config import FrameRule

pytestmark = pytest.mark.slow


def test_a_line_of_each_length_goes_from_the_small_model_to_the_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {3: {300: 0.8, 1000: 0.9}, 1: {300: 0.7, 1000: 0.85}}
    for num_layers, auroc in measured.items():
        run = tmp_path / str(num_layers)
        model = MiniModel(dataclasses.replace(SIZES, protein_layers=num_layers))
        export_model(run / "model", model, FrameRule("stretches"))
        lines = [json.dumps({"length_bp": bp, "all": value}) for bp, value in auroc.items()]
        (run / draw_sizes.MEASURED_NAME).write_text("\n".join(lines) + "\n")
    large, small = (draw_sizes.read_measured(tmp_path / str(layers)) for layers in measured)
    assert (large.num_layers, large.auroc) == (3, measured[3])
    # A layer: four matrices of attention, two of the feed-forward, their biases, and two norms.
    layer = 4 * (16 * 16 + 16) + 2 * 16 * 24 + 24 + 16 + 4 * 16
    assert large.millions - small.millions == pytest.approx(2 * layer / 1e6)
    (axes,) = draw_sizes.draw_sizes([large, small]).axes
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]
    millions = [small.millions, large.millions]
    assert drawn == [(millions, [0.7, 0.8]), (millions, [0.85, 0.9])]
    path = tmp_path / "sizes.svg"
    words = ["draw_sizes", str(tmp_path / "1"), str(tmp_path / "3"), "--output", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    draw_sizes.main()
    text = path.read_text()
    assert ">300 bp<" in text
    assert ">1,000 bp<" in text

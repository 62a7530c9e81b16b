from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.reports.test_metrics import make_predictions
from virnucpro.errors import VirnucproError
from virnucpro.reports.figures import draw_report


@pytest.mark.slow
def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    found = make_predictions(60)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_report(tmp_path / name, found, "toys")
        paths = sorted((tmp_path / name).iterdir())
        assert [path.name for path in paths] == ["report.png", "report.svg"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert written[0][0].startswith(b"\x89PNG")


@pytest.mark.slow
def test_without_probabilities_only_the_score_is_drawn(tmp_path: Path) -> None:
    found = make_predictions(60)
    draw_report(tmp_path, found, "toys")
    with_probability = (tmp_path / "report.svg").read_bytes()
    draw_report(tmp_path, found._replace(probability=np.full(60, np.nan)), "toys")
    assert len((tmp_path / "report.svg").read_bytes()) < len(with_probability)


def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(VirnucproError, match=r"report\.png: cannot be written \(No such file"):
        draw_report(tmp_path / "gone", make_predictions(60), "toys")

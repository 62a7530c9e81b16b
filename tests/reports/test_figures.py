from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reports.test_metrics import make_predictions
from virnucpro.errors import VirnucproError
from virnucpro.reports.figures import Curve, draw_report
from virnucpro.reports.metrics import Predictions
from virnucpro.reports.report import against_the_rest, find_overfit, measure_subsets

LOSSES = [{"train": 0.6, "valid": 0.6}, {"train": 0.3, "valid": 0.4}, {"train": 0.1, "valid": 0.7}]


def draw(directory: Path, found: Predictions, **about) -> None:
    sections = measure_subsets("toys", found, [("small", found.score < 0.9)], "records")
    draw_report(directory, "toys", [Curve(found, sections[0])], sections, **about)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of 60 predictions and of a training."""
    directory = tmp_path_factory.mktemp("drawn")
    draw(directory, make_predictions(60), losses=LOSSES, best_epoch=2)
    return directory


@pytest.mark.slow
def test_the_same_predictions_give_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    draw(tmp_path, make_predictions(60), losses=LOSSES, best_epoch=2)
    written = []
    for directory in (drawn, tmp_path):
        paths = sorted(directory.iterdir())
        assert [path.name for path in paths] == ["report.png", "report.svg"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    assert written[0][0].startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_panels_say_what_they_show(drawn: Path) -> None:
    # matplotlib writes each text as a comment beside its outlines.
    texts = "\n".join(re.findall(r"<!-- (.*?) -->", (drawn / "report.svg").read_text()))
    num_viral = int(make_predictions(60).is_viral.sum())
    assert f"n = {num_viral} viral + {60 - num_viral} others" in texts
    # On one line: two lines would overlap where there are many subsets.
    assert f"\nall: {num_viral} + {60 - num_viral}\n" in texts
    assert re.search(r"AUROC 0\.\d{3} \(0\.\d{3}–0\.\d{3}\)", texts)
    assert re.search(r"average precision 0\.\d{3} \(0\.\d{3}–0\.\d{3}\)", texts)
    for text in ("the calls that were made", "bins of equal size", "kept: epoch 2", "small"):
        assert text in texts


@pytest.mark.slow
def test_each_class_gets_a_curve(tmp_path: Path) -> None:
    found = make_predictions(60)
    is_first = np.arange(60) % 2 == 0
    classes = [
        against_the_rest(f"class {name}", chosen, found.is_viral)
        for name, chosen in (("phage", found.is_viral & is_first), ("fungus", ~found.is_viral))
    ]
    sections = measure_subsets("toys", found, classes, "records")
    draw_report(tmp_path, "toys", [Curve(found, sections[0])], sections, classes)
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "report.svg").read_text())
    assert "ROC by class" in texts
    num_phages, num_others = (found.is_viral & is_first).sum(), (~found.is_viral).sum()
    # matplotlib writes a legend in each of the two panels.
    name = f"class phage against all others (n = {num_phages} viral + {num_others} others)"
    assert texts.count(name) == 2


@pytest.mark.slow
def test_without_probabilities_only_the_score_is_drawn(tmp_path: Path) -> None:
    found = make_predictions(60)
    draw(tmp_path, found)
    with_probability = (tmp_path / "report.svg").read_text()
    draw(tmp_path, found._replace(probability=np.full(60, np.nan)))
    assert "<!-- probability -->" in with_probability
    assert "<!-- probability -->" not in (tmp_path / "report.svg").read_text()


def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(VirnucproError, match=r"report\.png: cannot be written \(No such file"):
        draw(tmp_path / "gone", make_predictions(60))


def test_without_matplotlib_a_message_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw(tmp_path, make_predictions(60))
    assert "pip install 'virnucpro[train]'" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_records_of_one_kind_are_not_drawn(tmp_path: Path) -> None:
    found = make_predictions(60)
    draw(tmp_path, found.select(found.is_viral))
    assert list(tmp_path.iterdir()) == []


def test_an_overfit_is_pointed_out() -> None:
    (warning,) = find_overfit(LOSSES, best_epoch=2)
    assert "after epoch 2 the loss of the held-out records rose from 0.4 to 0.7" in warning
    assert find_overfit(LOSSES[:2], best_epoch=2) == []
    # Both losses rise: that is no overfit.
    assert find_overfit([*LOSSES[:2], {"train": 0.5, "valid": 0.7}], best_epoch=2) == []

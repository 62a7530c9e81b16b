"""Draws the figures of a report: ROC, precision and recall, calibration, scores."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from virnucpro.checkpoints.whole_files import replace_when_whole
from virnucpro.reports.metrics import (
    NUM_CALIBRATION_BINS,
    Predictions,
    bin_probabilities,
    trace_curves,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

_NUM_SCORE_BINS = 40


def can_draw() -> bool:
    """Return whether matplotlib can be used; warn if not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        logger.warning(
            "the report has no figures, because matplotlib cannot be used (%s); it comes with the "
            "extra `train`: pip install 'virnucpro[train]'",
            error,
        )
        return False
    return True


def draw_report(directory: Path, predictions: Predictions, title: str) -> None:
    """Write `report.png` and `report.svg`; the same predictions give the same bytes.

    Without matplotlib, warn and write nothing.

    Args:
        directory: The directory of the two files.
        predictions: Predictions with viral records and others.
        title: What the predictions are.

    Raises:
        VirnucproError: A file cannot be written.
    """
    if not can_draw():
        return
    # matplotlib is optional, and its import takes long.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9), layout="constrained")
    (roc, precision), (calibration, scores) = figure.subplots(2, 2)
    _draw_curves(roc, precision, predictions)
    _draw_calibration(calibration, predictions)
    _draw_scores(scores, predictions)
    figure.suptitle(title)
    # A date and random names would change the bytes of each file.
    metadata: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}
    with mpl.rc_context({"svg.hashsalt": "virnucpro"}):
        for ending, entries in metadata.items():
            path = directory / f"report.{ending}"
            with replace_when_whole(path) as temporary:
                figure.savefig(temporary, format=ending, dpi=120, metadata=entries)


def _draw_curves(roc: Axes, precision: Axes, predictions: Predictions) -> None:
    true, false = trace_curves(predictions)
    recall = true / true[-1]
    roc.plot(np.append(0, false / false[-1]), np.append(0, recall))
    roc.plot([0, 1], [0, 1], color="grey", linestyle=":")
    roc.set(title="ROC", xlabel="false positive rate", ylabel="recall")
    precision.step(recall, true / (true + false), where="pre")
    share = true[-1] / (true[-1] + false[-1])
    precision.axhline(share, color="grey", linestyle=":")
    precision.set(title="precision and recall", xlabel="recall", ylabel="precision", ylim=(0, 1.02))


def _draw_calibration(axes: Axes, predictions: Predictions) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    as_probability = predictions._replace(probability=predictions.score.clip(0, 1))
    axes.plot(*bin_probabilities(as_probability)[:2], marker="o", label="score, before calibration")
    if not np.isnan(predictions.probability).all():
        axes.plot(*bin_probabilities(predictions)[:2], marker="o", label="probability")
    axes.set(
        title=f"calibration, {NUM_CALIBRATION_BINS} bins",
        xlabel="mean of the bin",
        ylabel="share of viral records in the bin",
    )
    axes.legend()


def _draw_scores(axes: Axes, predictions: Predictions) -> None:
    for name, chosen in (("viral", predictions.is_viral), ("others", ~predictions.is_viral)):
        weight = predictions.weight[chosen]
        axes.hist(
            predictions.score[chosen],
            bins=_NUM_SCORE_BINS,
            range=(0, 1),
            weights=weight / weight.sum(),
            alpha=0.5,
            label=name,
        )
    axes.set(title="scores", xlabel="score", ylabel="share of the kind")
    axes.legend()

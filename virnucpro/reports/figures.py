"""Draws the figures of a report, as a paper needs them.

The figures need matplotlib; the numbers beside them do not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray
from virnucpro.backend.interface import Requirement
from virnucpro.checkpoints.whole_files import replace_when_whole
from virnucpro.reports.metrics import Estimate, Predictions, bin_equally, trace_curves
from virnucpro.reports.report import Section, name_moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_NUM_SCORE_BINS = 40
# More would overlap in the panel.
_MAX_SUBSETS = 24
# As many as matplotlib has colours.
_MAX_CLASSES = 10
_GREY = "0.5"


def can_draw() -> bool:
    """Return whether matplotlib can be used; warn if not."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        explained = Requirement("matplotlib", "virnucpro[train]").explain(error)
        logger.warning("the report has no figures, because this %s", explained)
        return False
    return True


class Curve(NamedTuple):
    """Records that get a line in each panel.

    Attributes:
        predictions: With viral records and others.
        section: The figures of all of them.
    """

    predictions: Predictions
    section: Section

    @property
    def has_both(self) -> bool:
        """Whether there are viral records and others: every panel compares them."""
        return bool(self.section.num_viral and self.section.num_others)

    @property
    def size(self) -> str:
        """How many records these are, for a legend."""
        return f"n = {self.section.num_viral:,} viral + {self.section.num_others:,} others"

    @property
    def name(self) -> str:
        """Which records these are, for a legend."""
        return self.section.records if self.section.subset == "all" else self.section.subset


def draw_report(
    directory: Path,
    title: str,
    curves: Sequence[Curve],
    sections: Sequence[Section],
    classes: Sequence[tuple[str, BoolArray]] = (),
    losses: Sequence[Mapping[str, float]] = (),
    best_epoch: int = 0,
) -> None:
    """Write `report.png` and `report.svg`; the same predictions give the same bytes.

    Without matplotlib or without records of both kinds, nothing is drawn.

    Args:
        directory: The directory of the two files.
        title: What the predictions are.
        curves: The records to draw; the first are those of the panels with one kind of records.
        sections: The subsets of the first records, with their figures.
        classes: Subsets of the first records, each with its mask, bool (N,). Ten of them get lines
            in panels of their own.
        losses: The losses of each epoch of a training.
        best_epoch: The epoch that was kept, from 1.

    Raises:
        OutputError: A file cannot be written.
    """
    for ending in ("png", "svg"):
        # The figures of an earlier report must not stay beside other numbers.
        (directory / f"report.{ending}").unlink(missing_ok=True)
    section_of = {one.subset: one for one in sections}
    of_classes = [
        Curve(curves[0].predictions.select(chosen), section_of[name])
        for name, chosen in classes
        if name in section_of
    ]
    curves, of_classes = ([one for one in each if one.has_both] for each in (curves, of_classes))
    if not curves or not can_draw():
        return
    # matplotlib is optional, and its import takes long.
    from matplotlib.figure import Figure

    # `Figure` and not pyplot, which keeps every figure and may ask for a display.
    num_columns = 4 if of_classes else 3
    figure = Figure(figsize=(13 / 3 * num_columns, 8.5), layout="constrained")
    # Each row is laid out alone, because the names of subsets need much room in the second one. A
    # list, because a panel may get further axes.
    rows = figure.subfigures(2, 1, squeeze=False).flat
    drawn = [axes for row in rows for axes in row.subplots(1, num_columns)]
    panels = iter(drawn)
    _draw_curves(next(panels), next(panels), curves)
    _draw_calibration(next(panels), curves[0])
    _draw_scores(next(panels), curves[0])
    _draw_subsets(next(panels), sections)
    if of_classes:
        _draw_curves(next(panels), next(panels), of_classes[:_MAX_CLASSES], " by class")
    if losses:
        _draw_losses(next(panels), losses, best_epoch)
    unused = list(panels)
    for empty in unused:
        empty.remove()
    # Not strict: there may be fewer panels than letters.
    for letter, axes in zip("abcdefgh", drawn[: len(drawn) - len(unused)], strict=False):
        axes.set_title(letter, loc="left", fontweight="bold")
    figure.suptitle(title)
    _save(figure, directory)


def _save(figure: Figure, directory: Path) -> None:
    import matplotlib as mpl

    # A date and random names would change the bytes of each file.
    metadata: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}
    with mpl.rc_context({"svg.hashsalt": "virnucpro"}):
        for ending, entries in metadata.items():
            with replace_when_whole(directory / f"report.{ending}") as temporary:
                figure.savefig(temporary, format=ending, dpi=150, metadata=entries)


def _draw_curves(roc: Axes, precision: Axes, curves: Sequence[Curve], what: str = "") -> None:
    roc.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    for number, one in enumerate(curves):
        true, false = trace_curves(one.predictions)
        # The last point calls everything viral, so it has all of the weight.
        recall, name = true / true[-1], f"{one.name} ({one.size})"
        style: dict[str, Any] = {"color": f"C{number}"}
        area, average = (one.section.estimates[metric] for metric in ("auroc", "auprc"))
        roc.plot(
            np.append(0, false / false[-1]),
            np.append(0, recall),
            label=f"{name}\nAUROC {_describe(area)}",
            **style,
        )
        # Steps, because the average precision beside it is a sum of steps.
        precision.step(
            recall,
            true / (true + false),
            where="pre",
            label=f"{name}\naverage precision {_describe(average)}",
            **style,
        )
        # The precision of calls at random.
        share = true[-1] / (true[-1] + false[-1])
        precision.axhline(share, linestyle=":", **style)
        hits, alarms = _measure_calls(one.predictions)
        called = {"marker": "o", "linestyle": "", "markeredgecolor": "black", **style}
        roc.plot(alarms / false[-1], hits / true[-1], **called)
        if hits + alarms:
            precision.plot(hits / true[-1], hits / (hits + alarms), **called)
    for axes in (roc, precision):
        axes.plot([], [], "ko", label="the calls that were made")
        if what:
            # Many lines cross the whole panel, so their legend stands below it.
            axes.legend(fontsize="xx-small", loc="upper center", bbox_to_anchor=(0.5, -0.2))
        else:
            axes.legend(fontsize="x-small", loc="lower right" if axes is roc else "lower left")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    roc.set(title=f"ROC{what}", xlabel="false positive rate", ylabel="recall")
    precision.set(title=f"precision and recall{what}", xlabel="recall", ylabel="precision")


def _measure_calls(predictions: Predictions) -> tuple[float, float]:
    """Return the weights of the viral and of the other records that are called viral."""
    weight, is_viral = predictions.weight * predictions.is_called, predictions.is_viral
    return float(weight[is_viral].sum()), float(weight[~is_viral].sum())


def _draw_calibration(axes: Axes, curve: Curve) -> None:
    predictions = curve.predictions
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    # `evaluate` ranks records below 0 that have no score of the classifier.
    score = np.where(predictions.score < 0, np.nan, predictions.score)
    lines = [("score, before calibration", score)]
    if not np.isnan(predictions.probability).all():
        lines.append(("probability", predictions.probability))
    for name, promised in lines:
        bins = bin_equally(predictions._replace(probability=promised))
        errors = np.stack([bins.share - bins.low, bins.high - bins.share])
        axes.errorbar(bins.promised, bins.share, errors, marker="o", capsize=2, label=name)
    axes.set(
        title=f"calibration, {len(bins.share)} bins of equal size",
        xlabel="mean of the bin",
        ylabel="share of viral records in the bin",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.legend(title=curve.size, title_fontsize="x-small", fontsize="x-small", loc="upper left")


def _draw_scores(axes: Axes, curve: Curve) -> None:
    predictions = curve.predictions
    for name, chosen, number in (
        ("viral", predictions.is_viral, curve.section.num_viral),
        ("others", ~predictions.is_viral, curve.section.num_others),
    ):
        # As shares, because one kind may have a hundred times as many records.
        weight = predictions.weight[chosen]
        axes.hist(
            predictions.score[chosen],
            bins=_NUM_SCORE_BINS,
            range=(0, 1),
            weights=weight / weight.sum(),
            alpha=0.5,
            label=f"{name}, n = {number:,}",
        )
    axes.set(title="scores", xlabel="score", ylabel="share of the kind")
    axes.legend(fontsize="x-small")


def _draw_subsets(axes: Axes, sections: Sequence[Section]) -> None:
    """Draw the AUROC of each subset, with its interval."""
    known = [one for one in sections if not math.isnan(one.estimates["auroc"].value)]
    shown = known[:_MAX_SUBSETS]
    for place, section in enumerate(shown):
        value, low, high = section.estimates["auroc"]
        # matplotlib takes no negative lengths, and an interval may lie beside its value.
        errors = None if math.isnan(low) else [[max(0, value - low)], [max(0, high - value)]]
        axes.errorbar(value, place, xerr=errors, marker="o", color="C0", capsize=2)
    labels = [f"{one.subset}: {one.num_viral:,} + {one.num_others:,}" for one in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize="xx-small")
    axes.invert_yaxis()
    axes.set(title="by subset (viral + others)", xlabel="AUROC, 95 % interval")


def _draw_losses(axes: Axes, losses: Sequence[Mapping[str, float]], best_epoch: int) -> None:
    from matplotlib.lines import Line2D

    is_tuned = "step" in losses[0]
    moments = [loss.get("step", number) for number, loss in enumerate(losses, start=1)]
    for name in ("train", "valid"):
        axes.plot(moments, [loss[name] for loss in losses], label=name)
    if is_tuned:
        beside = axes.twinx()
        curve = beside.plot(moments, [loss["auroc"] for loss in losses], color=_GREY)
        # Of two pairs of axes, only the first one has a legend.
        axes.add_line(Line2D([], [], color=curve[0].get_color(), label="AUROC, on the right"))
        beside.set(ylabel="AUROC of held-out records")
    kept = f"kept: {name_moment(losses, best_epoch)}"
    axes.axvline(moments[best_epoch - 1], color=_GREY, linestyle=":", label=kept)
    label = "step" if is_tuned else "epoch"
    axes.set(title="losses", xlabel=label, ylabel="weighted cross-entropy")
    axes.legend(fontsize="x-small")


def _describe(estimate: Estimate) -> str:
    value, low, high = estimate
    interval = "" if math.isnan(low) else f" ({low:.3f}–{high:.3f})"
    return f"{value:.3f}{interval}"

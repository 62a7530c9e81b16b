"""Places bars, dots and lines in small SVG plots, which a template draws.

matplotlib draws the figures for papers. Here it would cost each `predict` half a second, and a page
holds a hundred tracks. Its colours could not follow the reader's theme either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from virnucpro.errors import format_rounded, shorten

WIDTH, HEIGHT = 480, 260
"""Of a plot. It is narrow, so that its letters are still large on a telephone."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 42
_TRACK_HEIGHT = 120
_BAR_HEIGHT, _BAR_STEP = 18, 26
_LABEL_WIDTH, _VALUE_WIDTH = 150, 70
_LETTER_WIDTH, _MAX_LETTERS = 7.5, 27
_NUM_STEPS = 4

TRACK_FRAME = {
    "left": _LEFT,
    "right": WIDTH - _RIGHT,
    "top": _TOP,
    "bottom": _TRACK_HEIGHT - _BOTTOM,
}
"""Where the axes of a track are: the page's script draws tracks, too."""

Tick = tuple[float, str]


class Shape(NamedTuple):
    """A mark of a plot.

    Attributes:
        tag: The SVG element.
        kind: Its class in the style sheet, such as `virus`.
        attributes: Its place.
        title: What a reader sees who points at it.
    """

    tag: str
    kind: str
    attributes: Mapping[str, Any]
    title: str = ""


class Plot(NamedTuple):
    """A plot, in the units of its viewBox.

    Attributes:
        title: What it shows, for readers who do not see it, and for the name of a saved file.
        shapes: The marks, from back to front.
        x_ticks: Places and labels on the x axis.
        y_ticks: Places and labels on the y axis.
        x_label: What the x axis is.
        y_label: What the y axis is.
        height: Of the plot.
        bottom: The y of the x axis.
        left: The x of the y axis.
        caption: What stands below it; empty for nothing.
    """

    title: str
    shapes: Sequence[Shape]
    x_ticks: Sequence[Tick] = ()
    y_ticks: Sequence[Tick] = ()
    x_label: str = ""
    y_label: str = ""
    height: float = HEIGHT
    bottom: float = HEIGHT - _BOTTOM
    left: float = _LEFT
    caption: str = ""


def draw_columns(
    title: str, edges: Sequence[float], counts: Mapping[str, Sequence[int]], x_label: str
) -> Plot:
    """Return a histogram; the columns of each kind stand on those of the kind before.

    Args:
        title: What it shows.
        edges: The edges of the bins, one more than there are bins.
        counts: The height of each column, by kind.
        x_label: What the bins are.
    """
    num_bins = len(edges) - 1
    # Never 0, because the scale divides by it.
    highest = max((sum(column) for column in zip(*counts.values(), strict=True)), default=0) or 1
    place = _scale(0, num_bins, _LEFT, WIDTH - _RIGHT)
    rise = _scale(0, highest, HEIGHT - _BOTTOM, _TOP)
    shapes = []
    below = [0] * num_bins
    for kind, heights in counts.items():
        for number, count in enumerate(heights):
            if not count:
                continue
            top = rise(below[number] + count)
            shapes.append(
                Shape(
                    "rect",
                    kind,
                    {
                        "x": _round(place(number) + 0.5),
                        "y": _round(top),
                        "width": _round(place(1) - place(0) - 1),
                        "height": _round(rise(below[number]) - top),
                    },
                    f"{count:,} {kind}, {x_label} {edges[number]:,.9g} to {edges[number + 1]:,.9g}",
                )
            )
            below[number] += count
    step = max(1, round(num_bins / 5))
    x_ticks = [(place(i), _short(edges[i])) for i in range(0, num_bins + 1, step)]
    y_ticks = [(rise(value), _short(value)) for value in _nice(highest)]
    return Plot(title, shapes, x_ticks, y_ticks, x_label, "records")


def draw_cells(
    title: str, cells: Mapping[tuple[str, float, float], int], y_label: str, threshold: float | None
) -> Plot:
    """Return dots over length and a share from 0 to 1; a dot is larger where it is more records.

    Args:
        title: What it shows.
        cells: How many records are at each kind, length in bp and share.
        y_label: What the share is.
        threshold: Where a line is drawn; None for no line.
    """
    # Without records, an axis of usual lengths.
    lengths = [length for _, length, _ in cells] or [100, 10_000]
    # A margin, so that no dot is cut at the edge.
    low, high = math.log10(min(lengths) / 1.3), math.log10(max(lengths) * 1.3)
    place = _scale(low, high, _LEFT, WIDTH - _RIGHT)
    rise = _scale(0, 1, HEIGHT - _BOTTOM, _TOP)
    shapes = []
    if threshold is not None:
        line = _level(rise(threshold))
        shapes.append(Shape("line", "threshold", line, f"threshold {threshold:g}"))
    # Large dots first, so that they hide no small ones.
    for (kind, length, share), count in sorted(cells.items(), key=lambda cell: -cell[1]):
        spot = {"cx": _round(place(math.log10(length))), "cy": _round(rise(share))}
        # By the logarithm, because one dot may be a thousand records.
        radius = _round(min(9, 3 + 1.5 * math.log10(count)))
        title_of_dot = f"{count:,} {kind}, about {length:,.0f} bp and {y_label} {share:.2f}"
        shapes.append(Shape("circle", kind, spot | {"r": radius}, title_of_dot))
    # On a long axis, labels in between would overlap.
    digits = (1, 2, 5) if high - low < 2 else (1,)
    round_lengths = [d * 10.0**power for power in range(int(low), int(high) + 1) for d in digits]
    x_ticks = [
        (place(math.log10(length)), _short(length))
        for length in round_lengths
        if low <= math.log10(length) <= high
    ]
    y_ticks = [(rise(share), f"{share:g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    return Plot(title, shapes, x_ticks, y_ticks, "length (bp)", y_label)


def draw_bars(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str = "") -> Plot:
    """Return horizontal bars, one below the other; the parts of each follow each other.

    Args:
        title: What it shows.
        rows: For each bar its label, and the length of each of its parts by kind.
        unit: Stands behind the numbers.
    """
    highest = max((sum(parts.values()) for _, parts in rows), default=0) or 1
    letters = min(_MAX_LETTERS, max((len(label) for label, _ in rows), default=0))
    left = max(_LABEL_WIDTH, _LETTER_WIDTH * letters)
    place = _scale(0, highest, left, WIDTH - _VALUE_WIDTH)
    shapes, labels = [], []
    for number, (label, parts) in enumerate(rows):
        top, reached = 4 + number * _BAR_STEP, 0.0
        labels.append((top + _BAR_HEIGHT / 2, shorten(label, _MAX_LETTERS)))
        for kind, value in parts.items():
            box = {"x": _round(place(reached)), "y": top, "height": _BAR_HEIGHT}
            reached += value
            # From the rounded start, so that the parts meet without a gap.
            box["width"] = _round(place(reached) - float(box["x"]))
            text = (
                f"{label}: {format_rounded(value)}{unit} {kind if len(parts) > 1 else ''}".rstrip()
            )
            shapes.append(Shape("rect", kind, box, text))
        middle = {"x": _round(place(reached) + 6), "y": top + _BAR_HEIGHT / 2 + 4}
        shapes.append(Shape("text", "value", middle, f"{format_rounded(reached)}{unit}"))
    bottom = 8 + len(rows) * _BAR_STEP
    return Plot(title, shapes, y_ticks=labels, height=bottom, bottom=0, left=left)


def draw_track(
    title: str,
    length: int,
    chunks: Iterable[tuple[int, int, float]],
    regions: Sequence[tuple[int, int]],
    middle: float = 0.5,
) -> Plot:
    """Return the scores of a record's chunks along the record, with its viral regions behind.

    Args:
        title: What it shows.
        length: Of the record, in bp.
        chunks: Start, end and score of each scored chunk, by start.
        regions: Start and end of each viral region.
        middle: Where a line is drawn.
    """
    bottom = _TRACK_HEIGHT - _BOTTOM
    place = _scale(0, max(1, length), _LEFT, WIDTH - _RIGHT)
    rise = _scale(0, 1, bottom, _TOP)
    shapes = [
        Shape(
            "rect",
            "region",
            {
                "x": _round(place(start)),
                "y": _TOP,
                "width": _round(max(1.0, place(end) - place(start))),
                "height": bottom - _TOP,
            },
            f"viral region {start:,} to {end:,}",
        )
        for start, end in regions
    ]
    shapes.append(Shape("line", "threshold", _level(rise(middle))))
    for start, end, score in chunks:
        box = {"x": _round(place(start)), "width": _round(max(0.6, place(end) - place(start)))}
        box |= {"y": _round(min(rise(score), rise(middle)))}
        # At least this much: the chunk of a long record would be too thin to see.
        box |= {"height": _round(max(0.8, abs(rise(score) - rise(middle))))}
        kind = "virus" if score >= middle else "others"
        shapes.append(Shape("rect", f"chunk {kind}", box, f"{start:,} to {end:,}: {score:.3f}"))
    x_ticks = [(place(value), _short(value)) for value in _nice(length)]
    y_ticks = [(rise(share), f"{share:g}") for share in (0, 0.5, 1)]
    # Of a record that is viral as a whole, the region says nothing new.
    parts = [f"{start:,} to {end:,}" for start, end in regions if end - start < length]
    caption = f"Viral: {'; '.join(parts)}" if parts else ""
    labels = ("position (bp)", "score")
    return Plot(title, shapes, x_ticks, y_ticks, *labels, _TRACK_HEIGHT, bottom, caption=caption)


def _level(y: float) -> dict[str, float]:
    """Return the ends of a line across a plot."""
    return {"x1": _LEFT, "x2": WIDTH - _RIGHT, "y1": _round(y), "y2": _round(y)}


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _nice(highest: float) -> list[float]:
    """Return 0 and some round numbers up to `highest`."""
    step = max(1.0, 10 ** math.floor(math.log10(max(1.0, highest / _NUM_STEPS))))
    # Of 1, 2 and 5, the smallest that needs no more steps.
    step *= next((factor for factor in (1, 2, 5) if highest / (step * factor) <= _NUM_STEPS), 10)
    return [number * step for number in range(int(highest / step) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:g}"


def _round(value: float) -> float:
    return round(value, 1)

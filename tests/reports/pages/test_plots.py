"""Plots of a page, as shapes."""

from __future__ import annotations

import pytest

from virnucpro.reports.pages.plots import draw_bars, draw_cells, draw_columns, draw_track


def test_bars_have_room_for_their_labels_and_plain_numbers() -> None:
    rows = {"total": 3_600.4, "screen: protein embeddings": 12.3, "open models": 0.062}
    plot = draw_bars("Time", [(name, {"seconds": value}) for name, value in rows.items()], " s")
    assert [label for _, label in plot.y_ticks] == list(rows)
    assert plot.left == 7.5 * len("screen: protein embeddings")
    bars = [shape for shape in plot.shapes if shape.tag == "rect"]
    assert {bar.attributes["x"] for bar in bars} == {plot.left}
    assert bars[0].title == "total: 3,600 s"
    numbers = [shape.title for shape in plot.shapes if shape.tag == "text"]
    assert numbers == ["3,600 s", "12 s", "0.062 s"]


def test_counts_of_millions_are_whole() -> None:
    plot = draw_bars("Calls", [("virus", {"virus": 1_234_567})])
    assert [shape.title for shape in plot.shapes] == ["virus: 1,234,567", "1,234,567"]
    assert plot.left == 150


def test_lengths_of_millions_are_whole() -> None:
    plot = draw_columns("Lengths", [10**6, 3_123_456], {"virus": [2]}, "length (bp)")
    assert [shape.title for shape in plot.shapes] == ["2 virus, length (bp) 1,000,000 to 3,123,456"]
    assert [label for _, label in plot.x_ticks] == ["1M", "3.123M"]


# What shapes stand for, read back from their places: an axis goes from 52 to 468, and from 218 to
# 12, or to 78 in a track.


def read_share(y: float, bottom: float = 218) -> float:
    return (bottom - y) / (bottom - 12)


def test_columns_stand_on_each_other() -> None:
    plot = draw_columns("", [0, 10, 20, 40], {"virus": [3, 0, 4], "others": [1, 2, 4]}, "length")
    boxes = [(shape.kind, shape.attributes) for shape in plot.shapes]
    height = {"virus": {0: 3, 2: 4}, "others": {0: 1, 1: 2, 2: 4}}
    for kind, box in boxes:
        number = round((box["x"] - 52) * 3 / 416 - 0.5)
        count = height[kind].pop(number)
        assert 8 * box["height"] / 206 == pytest.approx(count, abs=0.01)
        below = {0: 3, 1: 0, 2: 4}[number] if kind == "others" else 0
        top = read_share(box["y"]) * 8
        assert top == pytest.approx(below + count, abs=0.01)
    assert height == {"virus": {}, "others": {}}
    assert plot.shapes[0].title == "3 virus, length 0 to 10"


def test_dots_lie_at_their_length_and_share_over_a_line() -> None:
    cells = {("virus", 1_000.0, 0.9): 1, ("others", 100_000.0, 0.2): 100}
    plot = draw_cells("", cells, "probability", 0.7)
    line, large, small = plot.shapes
    assert (line.tag, line.title) == ("line", "threshold 0.7")
    assert read_share(line.attributes["y1"]) == pytest.approx(0.7, abs=0.001)
    # Large dots come first, so that they hide no small ones.
    assert (large.kind, small.kind) == ("others", "virus")
    assert large.attributes["r"] == 6
    assert small.attributes["r"] == 3
    place = {label: x for x, label in plot.x_ticks}
    for dot, label, share in ((large, "100k", 0.2), (small, "1k", 0.9)):
        assert dot.attributes["cx"] == pytest.approx(place[label], abs=0.1)
        assert read_share(dot.attributes["cy"]) == pytest.approx(share, abs=0.001)
    assert [shape.tag for shape in draw_cells("", cells, "score", None).shapes] == ["circle"] * 2


def test_a_track_has_a_bar_for_each_chunk_over_its_regions() -> None:
    plot = draw_track("", 1_000, [(0, 500, 0.9), (500, 1_000, 0.25)], [(250, 500)], middle=0.6)
    region, line, high, low = plot.shapes
    assert (region.attributes["x"], region.attributes["width"]) == (52 + 104, 104)
    assert read_share(line.attributes["y1"], 78) == pytest.approx(0.6, abs=0.001)
    assert [(bar.kind, bar.attributes["x"]) for bar in (high, low)] == [
        ("chunk virus", 52),
        ("chunk others", 52 + 208),
    ]
    for bar, top, share in ((high, 0.9, 0.3), (low, 0.6, 0.35)):
        assert read_share(bar.attributes["y"], 78) == pytest.approx(top, abs=0.001)
        assert bar.attributes["height"] / 66 == pytest.approx(share, abs=0.002)

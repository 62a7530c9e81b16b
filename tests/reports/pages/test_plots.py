"""Plots of a page, as shapes."""

from __future__ import annotations

from virnucpro.reports.pages.plots import draw_bars, draw_columns


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

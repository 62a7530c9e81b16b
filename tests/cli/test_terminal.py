"""Tables and bars that commands print."""

from __future__ import annotations

from virnucpro.cli.terminal import counting_bars, format_table


def test_a_table_aligns_names_left_and_figures_right() -> None:
    assert format_table(("name", "tokens/s"), [("esm2", "1,234"), ("dnabert-s", "5")]) == (
        "name       tokens/s\nesm2          1,234\ndnabert-s         5"
    )


def test_a_table_is_never_cut_and_shows_brackets_as_they_are() -> None:
    long = "[bold]" + "x" * 500
    assert long in format_table(("a", "b"), [(long, ":warning:")])
    assert ":warning:" in format_table(("a", "b"), [(long, ":warning:")])


def test_without_a_terminal_there_are_no_bars() -> None:
    with counting_bars() as show:
        assert show is None

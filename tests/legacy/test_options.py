"""The options of the fork that virnucpro accepts and hides."""

from __future__ import annotations

import dataclasses

from virnucpro.config import PredictConfig, command_options
from virnucpro.legacy.options import FORK_OPTIONS


def test_each_says_why_nothing_depends_on_it_or_what_it_means() -> None:
    assert [
        option.names for option in FORK_OPTIONS if bool(option.why) == bool(option.meaning)
    ] == []


def test_what_one_sets_is_a_setting_of_predict_and_not_its_default() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(PredictConfig)}
    found = dict(option.sets for option in FORK_OPTIONS if option.sets is not None)
    assert set(found) == {"resume", "attention"}
    assert all(defaults[name] != value for name, value in found.items())


def test_none_has_the_name_of_an_option_that_predict_shows() -> None:
    shown = set()
    for option in command_options("predict").values():
        shown |= {option.long_name, option.negative_name, *option.aliases}
    hidden = {part for one in FORK_OPTIONS for name in one.names for part in name.split("/")}
    assert not shown & hidden

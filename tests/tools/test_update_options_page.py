from __future__ import annotations

import re

from tools.update_options_page import PAGE, fill_in
from virnucpro.config import COMMANDS

TOLD_IN_PROSE = {"monitor", "backends", "checkpoints verify", "utils validate"} | {
    f"models {name}" for name in ("list", "verify", "path", "remove")
}


def test_the_tables_of_options_are_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert fill_in(page) == page
    assert fill_in(page.replace("Random seed.", "An older text.")) == page


def test_the_page_begins_with_all_commands():
    table = PAGE.read_text(encoding="utf-8").partition("\n\n##")[0]
    missing = [
        name for name in COMMANDS if not re.search(rf"^\| .*`{name}[ `]", table, re.MULTILINE)
    ]
    assert not missing


def test_every_command_has_its_table():
    page = PAGE.read_text(encoding="utf-8")
    without = {name for name in COMMANDS if f"<!-- options of {name} -->" not in page}
    assert without == TOLD_IN_PROSE

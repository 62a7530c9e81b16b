"""Known labels of records: reading their table, and numbering their groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.errors import InputError, brief
from virnucpro.reports.tables import read_table

IS_VIRAL = {"virus": True, "viral": True, "1": True, "others": False, "other": False, "0": False}
"""What each word in the column label means."""


class Label(NamedTuple):
    """The truth about a record; class and group are empty if the table does not give them."""

    is_viral: bool
    name_of_class: str
    group: str


def read_truth(path: Path) -> dict[str, Label]:
    """Return the label of each id in a table with the columns id, label and perhaps class, group.

    Raises:
        InputError: The table cannot be read, or has an unknown label or two labels for an id.
    """
    truth: dict[str, Label] = {}
    for number, line in read_table(path, ("id", "label"), ("class", "group")):
        word = line["label"].strip().lower()
        if word not in IS_VIRAL:
            raise InputError(
                f"{path}, line {number}: the label is {brief(line['label'])}, wanted one of "
                f"{', '.join(IS_VIRAL)}"
            )
        found = Label(IS_VIRAL[word], line.get("class", ""), line.get("group", ""))
        # The same line twice does no harm. Two answers would.
        if truth.setdefault(line["id"], found) != found:
            raise InputError(
                f"{path}, line {number}: {brief(line['id'])} had another label, class or group "
                "before; keep one line of the two"
            )
    return truth


def number_groups(groups: Sequence[str]) -> Int64Array:
    """Return int64 (N,): the number of each record's group; records without one get their own."""
    group = np.array(groups, dtype=object)
    number = np.unique(group, return_inverse=True)[1].astype(np.int64)
    alone = np.flatnonzero(group == "")
    # Numbers from N on are free: there are at most N groups.
    number[alone] = len(group) + alone
    return number

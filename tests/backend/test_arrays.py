from __future__ import annotations

import pytest

from virnucpro.backend import arrays
from virnucpro.backend.arrays import split_rows


@pytest.mark.parametrize("stop", [3, 12, 13, 14])
def test_blocks_cover_all_rows_once(monkeypatch, stop):
    monkeypatch.setattr(arrays, "_ROWS_AT_ONCE", 5)
    rows = range(100)
    blocks = [list(rows[block]) for block in split_rows(3, stop)]
    assert [row for block in blocks for row in block] == list(range(3, stop))
    assert all(1 <= len(block) <= 5 for block in blocks)

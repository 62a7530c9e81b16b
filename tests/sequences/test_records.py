from __future__ import annotations

import pytest

from virnucpro.sequences.records import FRAME_ID, Record, chunk_id, frame_id


@pytest.mark.parametrize("record_id", ["r1", "a_chunk_7F1", "two\nlines", "\udcff", ""])
def test_a_frames_name_tells_its_record_and_chunk(record_id):
    name = frame_id(chunk_id(record_id, 12), 4)
    assert name == f"{record_id}_chunk_12R2"
    match = FRAME_ID.fullmatch(name)
    assert match is not None
    assert (match["record"], match["chunk"], match["number"]) == (record_id, name[:-2], "12")


def test_other_names_are_no_frames():
    for name in ("r1", "r1_chunk_1", "r1_chunk_F1", "r1_chunk_1F4", "r1_chunk_1F1 "):
        assert FRAME_ID.fullmatch(name) is None


def test_the_id_is_the_first_word_of_the_header():
    assert [Record(header, "").id for header in ("a b\tc", " a", "", " ")] == ["a", "a", "", ""]

from __future__ import annotations

from virnucpro.errors import count, count_who, first_line, format_rounded, name_few


def test_a_system_error_names_its_file_if_the_message_does_not() -> None:
    error = PermissionError(13, "Permission denied", "/cache/triton")
    assert first_line(error) == "Permission denied"
    assert first_line(error, with_file=True) == "/cache/triton: Permission denied"
    assert first_line(OSError(28, "No space left"), with_file=True) == "No space left"
    assert first_line(ValueError("one\ntwo"), with_file=True) == "one"


def test_a_rounded_number_is_readable() -> None:
    numbers = (0, 0.0456, 1.84, 9.96, 12.3, 177.4, 3_600.4)
    assert [*map(format_rounded, numbers)] == ["0", "0.046", "1.8", "10", "12", "177", "3,600"]


def test_a_number_has_its_noun() -> None:
    assert count(1, "batch") == "1 batch"
    assert count(1_200, "batch") == "1,200 batches"
    assert count(2, "class") == "2 classes"
    assert count(6, "epoch") == "6 epochs"
    assert count(0, "record") == "0 records"


def test_one_has_and_two_have() -> None:
    assert count_who(1, "record", "have", of=1) == "1 of 1 record has"
    assert count_who(1, "record", "have", of=5) == "1 of 5 records has"
    assert count_who(2, "record", "are", of=1200) == "2 of 1,200 records are"
    assert count_who(0, "record", "were") == "0 records were"
    assert count_who(1, "batch", "belong") == "1 batch belongs"
    assert count_who(2, "process", "have") == "2 processes have"


def test_a_few_of_many_are_named() -> None:
    assert name_few([]) == ""
    assert name_few([*"abcde"]) == "a, b, c, d, e"
    assert name_few([*"abcdef"]) == "a, b, c, d, e and 1 more"
    assert name_few(range(1_006)) == "0, 1, 2, 3, 4 and 1,001 more"

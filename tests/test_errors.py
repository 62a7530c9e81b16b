from __future__ import annotations

from virnucpro.errors import first_line


def test_a_system_error_names_its_file_if_the_message_does_not() -> None:
    error = PermissionError(13, "Permission denied", "/cache/triton")
    assert first_line(error) == "Permission denied"
    assert first_line(error, with_file=True) == "/cache/triton: Permission denied"
    assert first_line(OSError(28, "No space left"), with_file=True) == "No space left"
    assert first_line(ValueError("one\ntwo"), with_file=True) == "one"

from __future__ import annotations

import logging
import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from virnucpro.errors import UsageError
from virnucpro.runtime.logs import log_to_file, set_console_level, set_up_logging

ours = logging.getLogger("virnucpro.somewhere")
theirs = logging.getLogger("elsewhere")


@pytest.fixture(autouse=True)
def _restored_logging():
    root = logging.getLogger()
    level = root.level
    yield
    set_up_logging()
    for handler in root.handlers:
        if type(handler).__module__ == "virnucpro.runtime.logs":
            root.removeHandler(handler)
    root.setLevel(level)


def say_everything() -> None:
    ours.debug("detail")
    ours.info("news")
    theirs.info("foreign news")
    theirs.warning("foreign trouble")
    ours.error("failure")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.DEBUG, "detail\nnews\nWarning: foreign trouble\nError: failure\n"),
        (logging.INFO, "news\nWarning: foreign trouble\nError: failure\n"),
        (logging.ERROR, "Error: failure\n"),
    ],
)
def test_the_console_shows_each_message_once(capsys, level, expected):
    set_up_logging()
    set_up_logging(level)
    say_everything()
    assert capsys.readouterr().err == expected


def test_only_the_main_process_tells_news(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    set_up_logging()
    say_everything()
    assert capsys.readouterr().err == "Warning: foreign trouble\nError: failure\n"


def test_a_log_file_has_the_news_even_when_the_console_is_quiet(capsys, tmp_path):
    path = tmp_path / "all.log"
    set_up_logging(logging.INFO, path)
    set_console_level(logging.ERROR)
    say_everything()
    assert capsys.readouterr().err == "Error: failure\n"
    lines = path.read_text().splitlines()
    assert [line.split(": ")[-1] for line in lines] == ["news", "foreign trouble", "failure"]
    assert " INFO virnucpro.somewhere: news" in lines[0]


@pytest.mark.parametrize("content", [b">contig\nACGT\n", b"2026-01-01\tvirus\n", b"\x1f\x8b\x08"])
def test_messages_are_not_appended_to_another_file(tmp_path, content):
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"input: exists and does not begin as a log"):
        set_up_logging(logging.INFO, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("before", ["", "2026-01-22 17:32:57,741 - virnucpro - INFO - fork\n"])
def test_a_log_file_is_appended_to(tmp_path, before):
    path = tmp_path / "all.log"
    path.write_text(before)
    for _ in range(2):
        set_up_logging(logging.INFO, path)
        ours.info("news")
    assert path.read_text().startswith(before)
    assert path.read_text().count("news") == 2
    set_up_logging(logging.INFO, Path("/dev/null"))


def test_a_run_log_is_appended_to_and_ends_with_the_run(tmp_path):
    path = tmp_path / "run.log"
    for _ in range(2):
        with log_to_file(path):
            ours.info("during")
        ours.info("after")
    assert path.read_text().count("during") == 2
    assert "after" not in path.read_text()


def test_a_run_log_says_what_ended_the_run(tmp_path, capsys):
    path = tmp_path / "run.log"
    set_up_logging()
    with pytest.raises(ZeroDivisionError), log_to_file(path):
        1 / 0  # noqa: B018
    assert "ended by ZeroDivisionError: division by zero\nTraceback" in path.read_text()
    assert capsys.readouterr().err == ""


def test_a_log_says_when_with_the_time_zone(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        with log_to_file(tmp_path / "run.log"):
            ours.info("during")
        shown, zone = re.match(r"(.*)(\+05:45) INFO ", (tmp_path / "run.log").read_text()).groups()
    finally:
        monkeypatch.undo()
        time.tzset()
    moment = datetime.fromisoformat(shown + zone)
    assert abs(moment.timestamp() - time.time()) < 60


def test_no_message_controls_the_terminal(capsys, tmp_path):
    path = tmp_path / "run.log"
    set_up_logging(logging.INFO, path)
    escapes = "dup\x1b[31m\x1b]0;TITLE\x07\x9b2J\r\u202e"
    with pytest.raises(ValueError), log_to_file(tmp_path / "other.log"):  # noqa: PT012
        ours.error("ids belong to several records: %s", escapes)
        raise ValueError(escapes)
    seen = capsys.readouterr().err + path.read_text() + (tmp_path / "other.log").read_text()
    shown = r"dup\x1b[31m\x1b]0;TITLE\x07\x9b2J\r\u202e"
    assert seen.count(shown) == 5  # three messages, and a traceback that ends with it
    assert not set("\x1b\x07\x9b\r\u202e") & set(seen)

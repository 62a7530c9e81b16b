from __future__ import annotations

import json
import os
import resource
import threading
from pathlib import Path

import pytest

from virnucpro.checkpoints.whole_files import (
    open_to_append,
    open_whole,
    remove_file,
    replace_when_whole,
    replaced_together,
    write_json,
)
from virnucpro.errors import OutputError


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replace_when_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert names(tmp_path) == [".file.tmp", "file"]
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OutputError])
def test_an_error_in_the_block_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with open_whole(path) as file:
            file.write("new")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is no ordinary file"), open_whole(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_what_an_interrupted_process_left_is_replaced(tmp_path):
    (tmp_path / ".file.tmp").write_text("half of a much longer file")
    with open_whole(tmp_path / "file") as file:
        file.write("new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_bytes_that_are_not_utf8_come_out_as_they_went_in(tmp_path):
    with open_whole(tmp_path / "file") as file:
        file.write(b"\xff\n".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "file").read_bytes() == b"\xff\n"


def test_json_reads_back(tmp_path):
    document = {"schema_version": 1, "inputs": ["\udcff.fa", "é"], "seconds": {"total": 0.5}}
    write_json(tmp_path / "run.json", document)
    assert json.loads((tmp_path / "run.json").read_text("ascii")) == document


def test_a_missing_directory_is_explained(tmp_path):
    wanted = r"gone/run\.json: cannot be written \(No such file.*choose another output, where you"
    with pytest.raises(OutputError, match=wanted):
        write_json(tmp_path / "gone" / "run.json", {})


@pytest.mark.parametrize("num_bytes", [0, 50_000])
def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path, num_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow over this size, which fails within write() as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    has_begun = False

    def write():
        nonlocal has_begun
        with replace_when_whole(tmp_path / "file", num_bytes) as temporary:
            has_begun = True
            temporary.write_bytes(bytes(50_000))

    try:
        with pytest.raises(
            OutputError, match=r"file: cannot be written \(File too large.*make room"
        ):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # With the size given, the room is missed before anything is computed.
    assert has_begun == (num_bytes == 0)
    assert names(tmp_path) == []


def write_three(directory: Path) -> None:
    for name in ("a", "b", "c"):
        with open_whole(directory / name) as file:
            file.write(f"new {name}")
    remove_file(directory / "old")


def read_all(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_files_change_together_at_the_end(tmp_path):
    before = {"a": "old a", "old": "x"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with replaced_together():
        write_three(tmp_path)
        # Not those of other threads, such as the writer of parts.
        thread = threading.Thread(target=lambda: write_json(tmp_path / "other", {}))
        thread.start()
        thread.join()
        shown = {path.name: path.read_text() for path in tmp_path.glob("[!.]*")}
        assert shown == before | {"other": "{}\n"}
    assert read_all(tmp_path) == {"a": "new a", "b": "new b", "c": "new c", "other": "{}\n"}
    # Outside, each file changes at once.
    write_three(tmp_path)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, OSError])
def test_an_error_among_files_keeps_all_old_ones(tmp_path, error):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "old").write_text("x")

    def fail():
        with replaced_together():
            write_three(tmp_path)
            raise error

    with pytest.raises(error):
        fail()
    assert read_all(tmp_path) == {"a": "old a", "old": "x"}


def test_a_file_that_cannot_be_replaced_is_named(tmp_path):
    def write():
        with replaced_together():
            write_three(tmp_path)
            (tmp_path / "b").mkdir()

    with pytest.raises(OutputError, match="b: cannot be replaced"):
        write()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_link_of_the_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".file.tmp").symlink_to(victim)
    with replace_when_whole(tmp_path / "file", 100) as temporary:
        assert not temporary.is_symlink()
        temporary.write_text("new")
    assert victim.read_text() == "mine"
    (tmp_path / "link").symlink_to(victim)
    with open_whole(tmp_path / "link") as file:
        file.write("new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new"


def test_nothing_is_appended_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run.log").symlink_to(victim)
    with pytest.raises(OutputError, match=r"run\.log: is a link"):
        open_to_append(tmp_path / "run.log")
    with open_to_append(victim) as file:
        file.write(", more")
    assert victim.read_text() == "mine, more"


def test_too_many_open_files_are_no_full_disk(tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_number = os.dup(0)
    os.close(next_number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_number, hard))
    try:
        with (
            pytest.raises(OutputError, match=r"Too many open files\); allow more open files"),
            replace_when_whole(tmp_path / "file"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

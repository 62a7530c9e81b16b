"""The lock of a run directory, on file systems with locks and without."""

from __future__ import annotations

import errno
import fcntl
import functools
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.samples import PATIENCE_S
from virnucpro.errors import OutputError, UsageError
from virnucpro.runtime.downloads import digest_like, fetch_file
from virnucpro.runtime.locks import in_turn, locked, may_be_held, plain_lock_path

# NFS without lockd, Lustre without flock, others, and ENOTSUPP, for which Python has no name.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524)


def refuse(number: int, _descriptor: int, _operation: int) -> None:
    raise OSError(number, os.strerror(number))


@pytest.fixture(params=WITHOUT_LOCKS)
def lock_path(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A lock on a file system that has none."""

    monkeypatch.setattr(fcntl, "flock", functools.partial(refuse, request.param))
    return tmp_path / ".lock"


def end_a_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.slow
def test_a_second_run_is_kept_away(tmp_path: Path) -> None:
    script = "import sys, virnucpro.runtime.locks as r\nwith r.locked(r.Path(sys.argv[1])): pass"
    other = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    with locked(tmp_path / ".lock"):
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert f"{tmp_path}: another run is working here" in refused.stderr
    assert subprocess.run(other, check=False).returncode == 0


def test_not_even_one_process_does_two_runs_in_one_place(tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock"),
        pytest.raises(UsageError, match="another run is working here; wait for it"),
        locked(tmp_path / ".lock"),
    ):
        pytest.fail("two held the lock")
    with locked(tmp_path / ".lock"):
        assert may_be_held(tmp_path / ".lock")
    assert not may_be_held(tmp_path / ".lock")
    (tmp_path / ".lock").unlink()
    assert not may_be_held(tmp_path / ".lock")


def test_a_plain_file_stands_for_a_lock(lock_path: Path) -> None:
    with locked(lock_path):
        assert plain_lock_path(lock_path).is_file()
        assert may_be_held(lock_path)
        with pytest.raises(UsageError, match=r"\.lock\.holder: .* remove this file"):
            locked(lock_path).__enter__()
    assert not plain_lock_path(lock_path).exists()
    assert not may_be_held(lock_path)


def test_a_lock_that_would_outlive_its_machine_is_done_without(lock_path: Path) -> None:
    with locked(lock_path, or_plain=False):
        assert not plain_lock_path(lock_path).exists()
        with locked(lock_path, or_plain=False):
            pass


def test_a_file_is_fetched_where_there_are_no_locks(lock_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("content")
    fetch_file(source.as_uri(), tmp_path / "there" / "file", "")
    assert (tmp_path / "there" / "file").read_text() == "content"


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "file"
    source.write_text("content")
    wanted = digest_like(source, "sha256:")
    with ThreadPoolExecutor() as pool:
        with in_turn(tmp_path / ".file.lock"):
            others = [pool.submit(fetch_file, source.as_uri(), path, wanted) for _ in range(2)]
            time.sleep(0.2)
            assert not any(other.done() for other in others)
            # Nobody can fetch it any more, and nobody needs to.
            source.rename(path)
        for other in others:
            other.result(PATIENCE_S)
    assert path.read_text() == "content"


def test_the_empty_file_of_a_run_with_locks_keeps_nobody_away(lock_path: Path) -> None:
    lock_path.touch()
    with locked(lock_path):
        pass


@pytest.mark.slow
def test_a_run_of_this_machine_that_was_killed_keeps_nobody_away(lock_path: Path) -> None:
    with locked(lock_path):
        place, _ = plain_lock_path(lock_path).read_text().splitlines()
    plain_lock_path(lock_path).write_text(f"{place}\n{end_a_process()}\n")
    assert not may_be_held(lock_path)
    with locked(lock_path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("num_killed", [1, 2])
@pytest.mark.parametrize("lock_path", WITHOUT_LOCKS[:1], indirect=True)
def test_of_many_that_find_a_stale_lock_one_takes_it(lock_path: Path, num_killed: int) -> None:
    with locked(lock_path):
        place, _ = plain_lock_path(lock_path).read_text().splitlines()
    stale = f"{place}\n{end_a_process()}\n"
    # A process without torch forks others 30 times as fast as this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as small_process:
        for _ in range(8):
            plain_lock_path(lock_path).write_text(stale)
            if num_killed == 2:  # the second was killed while it took over the lock of the first
                plain_lock_path(lock_path).with_name(".lock.holder.next").write_text(stale)
            endings = small_process.submit(race, lock_path, 12).result()
            assert endings.count("two") == 0
            assert endings.count("held") >= 1
            assert [path.name for path in lock_path.parent.iterdir()] == [".lock"]


def race(lock_path: Path, num_processes: int) -> list[str]:
    """Let processes lock at the same instant; return what became of each."""
    fcntl.flock = functools.partial(refuse, WITHOUT_LOCKS[0])
    held = lock_path.with_name("held")
    codes = {"held": 0, "refused": 3, "two": 4}
    ready, go = os.pipe()
    children = []
    for _ in range(num_processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.close(go)
        os.read(ready, 1)  # until the other end is closed
        code = codes["refused"]
        try:
            with suppress(UsageError), locked(lock_path):
                # A file of its own would show a second holder, however short the time.
                held.touch(exist_ok=False)
                time.sleep(0.02)
                held.unlink()
                code = codes["held"]
        except FileExistsError:
            code = codes["two"]
        finally:
            os._exit(code)
    os.close(ready)
    os.close(go)
    names = {code: name for name, code in codes.items()}
    return [names[os.waitstatus_to_exitcode(os.waitpid(one, 0)[1])] for one in children]


def test_a_run_of_another_machine_may_be_going_on(lock_path: Path) -> None:
    plain_lock_path(lock_path).write_text("elsewhere\n1\n")
    with pytest.raises(UsageError, match="remove this file if nothing runs"):
        locked(lock_path).__enter__()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"\.lock: the lock of the run cannot be made"):
        locked(tmp_path / ".lock").__enter__()
    assert not (tmp_path / "elsewhere").exists()

"""The lock of a run directory, which keeps a second run away, and locks that others wait for."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virnucpro.errors import OutputError, UsageError

# What flock says if another process holds the lock. All else means that there are no locks: Lustre
# and NFS say ENOSYS or ENOLCK, other file systems EOPNOTSUPP, or 524, which has no name.
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


@contextmanager
def locked(path: Path, *, or_plain: bool = True) -> Iterator[None]:
    """Keep other runs away for as long as the body lasts.

    The operating system holds the lock, so it goes with the process, however that ends; the empty
    file stays and means nothing. Where the file system has no locks, a second file stands for the
    lock, which `plain_lock_path` names.

    Args:
        path: The file of the lock.
        or_plain: Whether to make that second file. It stays if this machine vanishes, and then no
            other machine can tell that its run has ended.

    Raises:
        OutputError: The file of the lock cannot be made.
        UsageError: Another run holds the lock.
    """
    plain_path = plain_lock_path(path)
    with _explaining(path):
        # O_NOFOLLOW: a link with this name could make us create a file elsewhere.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    is_plain = False
    try:
        try:
            # LOCK_NB: a second run must say at once that it cannot start, and not wait for hours.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise UsageError(
                    f"{path.parent}: another run is working here; wait for it, or choose another "
                    "directory"
                ) from None
            if or_plain:
                with _explaining(plain_path):
                    _take_plain(plain_path)
            is_plain = or_plain
        yield
    finally:
        if is_plain:
            with suppress(OSError):
                plain_path.unlink()
        # Closing gives the lock back. The file stays: another run may be about to lock it.
        os.close(descriptor)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let processes do the body one after the other; without locks, they do it at the same time.

    Raises:
        OSError: The file of the lock cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # This waits. An error means that the file system has no locks.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def may_be_held(path: Path) -> bool:
    """Tell whether a run may hold the lock `path`; if in doubt, one may."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        # The server of the file may be away, but a run does not go on without this file.
        return error.errno != errno.ENOENT
    try:
        # Shared, because this process may only be allowed to read. Closing gives it back.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        holder = None if error.errno in _HELD else _read_holder(plain_lock_path(path))
        return error.errno in _HELD or (holder is not None and _may_run(holder))
    finally:
        os.close(descriptor)
    return False


def plain_lock_path(path: Path) -> Path:
    """Return the file that stands for the lock `path` where the file system has no locks."""
    return path.with_name(f"{path.name}.holder")


def _take_plain(path: Path) -> None:
    """Make the file, which two runs cannot both make, and say in it who made it.

    Raises:
        UsageError: Another run made it, which may be going on.
    """
    place = _describe_place()
    while True:
        # "x" fails if the file exists. Even file systems without locks do this in one step.
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(f"{place}\n{os.getpid()}\n")
            return
        holder = _read_holder(path)
        if holder is None:
            continue
        if _may_run(holder):
            raise UsageError(
                f"{path}: another run may be working here, and this file system has no locks to "
                "tell; wait for it, or remove this file if nothing runs"
            )
        # A run of this very machine that was killed. Several runs may see that at once. If each
        # removed the file, one would remove the new file of another. So they first take a lock of
        # the same kind: who holds it is the only one that may replace the file.
        turn = path.with_name(f"{path.name}.next")
        _take_plain(turn)
        if _read_holder(path) == holder:
            # One step: our file becomes the lock, and there is no moment without one.
            turn.replace(path)
            return
        # Another run was faster, so look again.
        turn.unlink()


def _read_holder(path: Path) -> list[str] | None:
    """Return what the file says of its maker; None if the file is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None


def _may_run(holder: list[str]) -> bool:
    # If in doubt, the file counts as held. Two runs in one directory would be worse than a refusal.
    return len(holder) != 2 or holder[0] != _describe_place() or _is_alive(holder[1])


def _describe_place() -> str:
    """Return what a process number belongs to: this boot of this machine, and its container."""
    # After a restart, the same number may be another process. In a container, it surely is.
    boot_id = space = ""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{os.uname().nodename} {boot_id} {space}"


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, ValueError):
        # It is somebody else's process, or no number. If in doubt, it is alive.
        return True
    return True


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: the lock of the run cannot be made ({error.strerror}); make it possible to "
            "write there, or choose another directory"
        ) from error

"""Writing a file whole: a path shows the old file, or the complete new one, and nothing between."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TextIO

from virnucpro.errors import OutputError, OutputExistsError, writing_remedy

# For what a format adds to its content.
_SPARE_BYTES = 1 << 16

# Of each path that waits for `replaced_together`: whether a new file takes its place, or none.
_waiting: ContextVar[dict[Path, bool] | None] = ContextVar("waiting", default=None)


def refuse_existing(path: Path) -> None:
    """Refuse an output that is there already; a command calls this unless it has --force.

    Raises:
        OutputExistsError: Something is there.
    """
    if path.exists():
        raise OutputExistsError(
            f"{path}: exists already; overwrite it with --force, or choose another output (-o)"
        )


def make_output_dir(path: Path) -> None:
    """Make a directory for results, and those above it, unless it is there.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        if path.is_symlink():
            # The system says only that the file exists.
            reason = f"it is a link to {path.readlink()}, which is no directory"
        raise OutputError(
            f"{path}: the output directory cannot be made ({reason}); choose another, where you "
            "may write (-o)"
        ) from error


def check_output_dir(path: Path) -> None:
    """Make sure that a directory for results can be made and written to; nothing of it stays.

    Raises:
        OutputError: It cannot be made, or nothing can be written in it.
    """
    made = [directory for directory in (path, *path.parents) if not os.path.lexists(directory)]
    try:
        make_output_dir(path)
        # Tried, because only the file system knows: root may write anywhere but in a read-only one.
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"{path}: nothing can be written in this directory ({error.strerror}); choose another, "
            "where you may write (-o)"
        ) from error
    finally:
        for directory in made:
            # Not if another run has begun there meanwhile.
            with suppress(OSError):
                directory.rmdir()


@contextmanager
def replace_when_whole(path: Path, num_bytes: int = 0) -> Iterator[Path]:
    """Give a temporary path to write to, and move the file to `path` when the block ends.

    The file then survives a crash of the machine. An error in the block leaves `path` as it was.

    Args:
        path: The file to make or to replace.
        num_bytes: About how large the file becomes: this much is reserved before the block begins.

    Raises:
        OutputError: The file cannot be written.
    """
    temporary = _temporary_path(path)
    waiting = _waiting.get()
    try:
        _refuse_devices(path)
        with create_file(temporary) as file:
            # macOS does not have this function.
            if num_bytes and hasattr(os, "posix_fallocate"):
                # Raises if the disk, a quota or a limit forbids a file of this size.
                os.posix_fallocate(file.fileno(), 0, num_bytes + _SPARE_BYTES)
        yield temporary
        # A rename may reach the disk before the content does, so the content goes first.
        _sync(temporary)
        if waiting is None:
            temporary.replace(path)
            _sync_names(path.parent)
        else:
            waiting[path] = True
    except OSError as error:
        needed = f"; {num_bytes:,} bytes are needed" if num_bytes else ""
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}{needed}); "
            f"{writing_remedy(error)}"
        ) from error
    finally:
        if waiting is None or not waiting.get(path):
            with suppress(OSError):
                # After a success nothing is there. After an error, half a file must not stay.
                temporary.unlink(missing_ok=True)


@contextmanager
def replaced_together() -> Iterator[None]:
    """Let all files that the body writes whole, or removes, change when it has ended.

    After an error, all are as they were. So a full disk does not leave tables of two kinds. Files
    that other threads write are not concerned.

    Raises:
        OutputError: A file cannot be moved to its place.
    """
    waiting: dict[Path, bool] = {}
    token = _waiting.set(waiting)
    try:
        yield
        for path, is_new in waiting.items():
            try:
                if is_new:
                    _temporary_path(path).replace(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot be replaced ({error.strerror}); {writing_remedy(error)}"
                ) from error
        for directory in {path.parent for path in waiting}:
            _sync_names(directory)
    finally:
        _waiting.reset(token)
        for path in waiting:
            with suppress(OSError):
                _temporary_path(path).unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there; inside `replaced_together` only at its end."""
    waiting = _waiting.get()
    if waiting is None:
        path.unlink(missing_ok=True)
    else:
        waiting[path] = False


def _temporary_path(path: Path) -> Path:
    # Beside the file, because a rename is atomic only within one file system.
    return path.with_name(f".{path.name}.tmp")


def _refuse_devices(path: Path) -> None:
    # The rename would put a file in the place of a pipe, or of /dev/null.
    if path.exists() and not path.is_file():
        raise OSError(errno.EPERM, "it exists, and is no ordinary file")


@contextmanager
def open_whole(path: Path) -> Iterator[TextIO]:
    """Open a text file for `replace_when_whole`: UTF-8, other bytes as surrogate escapes.

    Raises:
        OutputError: The file cannot be written.
    """
    with (
        replace_when_whole(path) as temporary,
        # Escapes, because ids are written exactly as they were read.
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        yield file


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write indented JSON, whole.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_whole(path) as file:
        # NaN is not JSON: other programs would refuse the file.
        file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def link_or_copy(source: Path, path: Path) -> None:
    """Make `path` a second name of the file `source`, or a copy where that is impossible.

    Raises:
        OutputError: The file cannot be copied.
    """
    try:
        path.hardlink_to(source)
    # It is another file system, or one without such links.
    except OSError:
        with replace_when_whole(path, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)


def create_file(path: Path) -> BinaryIO:
    """Return a new file, open for writing, in place of whatever is at `path`.

    Where others may write too, a link with this name would lead to a file of the user.
    """
    path.unlink(missing_ok=True)
    # "x" follows no link, and fails if a new one is there by now.
    return path.open("xb")


def open_to_append(path: Path, *, errors: str = "strict") -> TextIO:
    """Return a text file of a run, open for appending; a link is not followed.

    Raises:
        OutputError: `path` is a link.
        OSError: The file cannot be written.
    """
    try:
        return open(path, "a+", encoding="utf-8", errors=errors, opener=_open_itself)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OutputError(
            f"{path}: is a link, and a run writes to no file that it does not own; remove the "
            "link, or choose another output (-o)"
        ) from error


def _open_itself(path: str, flags: int) -> int:
    # A link in a shared directory could make the run append to any file of the user.
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _sync_names(directory: Path) -> None:
    # Some network file systems cannot sync a directory.
    with suppress(OSError):
        _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

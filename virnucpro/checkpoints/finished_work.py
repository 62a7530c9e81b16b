"""Whether finished work may be used again: it is whole, and it belongs to this run.

A part of another run stops a run before it changes anything. A damaged or unfinished part is set
aside, and its rows are computed again.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import (
    FormatVersionError,
    UnfinishedError,
    check_part,
    read_identity,
    unmark,
)
from virnucpro.errors import CheckpointError, IdentityMismatchError

logger = logging.getLogger(__name__)


def collect_parts(directory: Path, identity: Identity, *, full: bool = True) -> list[Path]:
    """Check all parts in `directory`, set bad ones aside, and return the others, sorted.

    One process calls this before any process writes there, and tells the others.

    Args:
        directory: The parts of one run and one alphabet.
        identity: The identity of the parts that this run writes.
        full: As for `check_part`.

    Raises:
        IdentityMismatchError: A part belongs to another run; nothing was changed.
        FormatVersionError: A part has another version of the format; nothing was changed.
    """

    def find_fault(path: Path) -> CheckpointError | None:
        return _find_fault(path, identity, full=full)

    # Also parts without a mark: nothing says whether their bytes are those that were meant.
    paths = sorted(directory.glob("part-*.h5"))
    # All parts are checked before the first one is moved, so that an error changes nothing.
    # Threads suffice: reading and digesting release Python's global lock.
    with ThreadPoolExecutor() as pool:
        faults = dict(zip(paths, pool.map(find_fault, paths), strict=True))
    for leftover in directory.glob(".part-*.tmp"):
        # Processes were killed while they wrote these. They hold nothing that counts.
        leftover.unlink()
    for path, fault in faults.items():
        if fault is not None:
            _set_aside(path, fault)
    return [path for path, fault in faults.items() if fault is None]


def refuse_other_runs(directory: Path, identity: Identity) -> None:
    """Make sure that the parts in `directory` have this identity; nothing is changed.

    A run calls this before it changes anything. Damaged and unfinished parts do not count, because
    they will be set aside.

    Raises:
        IdentityMismatchError: A part belongs to another run.
        FormatVersionError: A part has another version of the format.
    """
    for path in sorted(directory.glob("part-*.h5")):
        refuse_other_run(path, identity)


def refuse_other_run(path: Path, identity: Identity) -> None:
    """Make sure that one file has this identity, or does not count; see `refuse_other_runs`."""
    try:
        is_ours = read_identity(path) == identity
    except FormatVersionError:
        raise
    except CheckpointError:
        return
    if not is_ours:
        # Raises if the part is whole, and so belongs to another run. Otherwise it does not count.
        _find_fault(path, identity, full=True)


def is_whole(path: Path, identity: Identity) -> bool:
    """Tell whether a file of this identity is as it was written; set a bad one aside.

    Raises:
        IdentityMismatchError: The file belongs to another run; nothing was changed.
        FormatVersionError: The file has another version of the format; nothing was changed.
    """
    if not path.exists():
        return False
    fault = _find_fault(path, identity, full=True)
    if fault is not None:
        _set_aside(path, fault)
    return fault is None


def _set_aside(path: Path, fault: CheckpointError) -> None:
    ending = "unfinished" if isinstance(fault, UnfinishedError) else "damaged"
    logger.warning("%s; set aside as %s.%s and computed again", fault, path.name, ending)
    # Kept and not deleted: a user may want to see what happened to the disk, or find lost marks.
    path.rename(path.with_name(f"{path.name}.{ending}"))
    # The part goes first: without its mark, a damaged part would look unfinished after a crash.
    unmark(path)


def _find_fault(path: Path, identity: Identity, *, full: bool) -> CheckpointError | None:
    """Return why a part cannot be used; a whole part of another run is an error."""
    try:
        check_part(path, full=full)
        differences = identity.differences(read_identity(path))
    # A part of another version is intact. Setting it aside would throw away good work.
    except FormatVersionError:
        raise
    except CheckpointError as error:
        return error
    if differences:
        raise IdentityMismatchError(
            f"{path} belongs to another run: {'; '.join(differences)}. Give another output "
            "directory (-o), start again with --force, or go back to the old input and settings"
        )
    return None

"""Puts the store of an input in place, unless it is there already; nothing is lost if it may not.

A new store is built beside the old one. It takes the old one's place when the caller has checked
that the finished parts in the directory belong to it. A run that is refused changes nothing.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from virnucpro.backend.interface import Alphabet
from virnucpro.backend.weights import digest_files
from virnucpro.checkpoints.run_directory import staged_dir
from virnucpro.config import STDIN
from virnucpro.errors import CheckpointError, OutputError, count_who, writing_remedy
from virnucpro.sequences.frame_store.reading import FrameStore, RecordStore, open_frame_store
from virnucpro.sequences.frame_store.writing import (
    StoreSettings,
    build_frame_store,
    build_record_store,
)
from virnucpro.sequences.records import NAMES_OF_ROWS

Store = TypeVar("Store", FrameStore, RecordStore)

logger = logging.getLogger(__name__)


def prepare_frame_store(
    inputs: Sequence[str],
    directory: Path,
    check: Callable[[FrameStore], object],
    settings: StoreSettings,
    read_before: FrameStore | None = None,
) -> None:
    """Build the frame store, unless a resumed run finds the whole store of the same input.

    Args:
        inputs: Paths of nucleotide FASTA or FASTQ files; `-` is standard input.
        directory: Where the store lies.
        check: Raises an error if the parts of the run do not belong to this store.
        settings: How the files become rows.
        read_before: A store of the same files, whose records are taken instead.

    Raises:
        InputError: An input cannot be read.
        OutputError: The store cannot be written.
        VirnucproError: The error of `check`; the store in place was not changed.
    """
    old = _open_whole_store(directory)
    if old and _is_of_input(old, inputs, settings, read_before):
        # Also when nothing is built: the parts may be of another model.
        check(old)
        logger.info("the %s of the earlier run are used again", NAMES_OF_ROWS[old.rule.kind])
        return

    def build(staged: Path) -> FrameStore:
        return build_frame_store(inputs, staged, settings, read_before)

    _build_beside(directory, build, check)
    store = open_frame_store(directory)
    # Not an error: each record has rows of its own, and ids are only shown.
    if store.num_duplicate_ids:
        # As in two files of mates, or in a BAM file of pairs.
        all_twice = store.reads_per_record == 1 and store.num_records == 2 * store.num_duplicate_ids
        logger.warning(
            "%s to several records; each record has its own lines in every table%s: %s",
            count_who(store.num_duplicate_ids, "id", "belong"),
            "; if they are the mates of pairs, give predict --paired" if all_twice else "",
            ", ".join(store.duplicate_ids(limit=5)),
        )


def prepare_record_store(
    inputs: Sequence[str],
    directory: Path,
    check: Callable[[RecordStore], object],
    *,
    alphabet: Alphabet,
    force_alphabet: bool = False,
) -> None:
    """Build the record store; see `prepare_frame_store`.

    Raises:
        InputError: An input cannot be read.
        OutputError: The store cannot be written.
        VirnucproError: The error of `check`; the store in place was not changed.
    """
    build = functools.partial(
        build_record_store, inputs, alphabet=alphabet, force_alphabet=force_alphabet
    )
    _build_beside(directory, build, check)


def _open_whole_store(directory: Path) -> FrameStore | None:
    """Return the store in place if it is as it was written."""
    try:
        return open_frame_store(directory, verify=True)
    except CheckpointError as error:
        if directory.is_dir():
            logger.warning("%s; the input is read again", error)
        return None


def _is_of_input(
    store: FrameStore,
    inputs: Sequence[str],
    settings: StoreSettings,
    read_before: FrameStore | None,
) -> bool:
    # The number of reads of a record too, because pairs are cut otherwise.
    names = ("chunk_length_bp", "min_length_bp", "rule", "reads_per_record")
    if any(getattr(store, name) != getattr(settings, name) for name in names):
        return False
    if read_before is not None:
        return store.input_digest == read_before.input_digest
    paths = [Path(name) for name in inputs]
    # Standard input can be read once only. It is read for the new store, not for a comparison.
    if STDIN in inputs or not all(path.is_file() for path in paths):
        return False
    # Read anew, because a remembered digest could hide that the input was changed a moment ago.
    return [f"sha256:{file['sha256']}" for file in store.inputs] == [
        digest_files([path], anew=True) for path in paths
    ]


def _build_beside(
    directory: Path, build: Callable[[Path], Store], check: Callable[[Store], object]
) -> None:
    staged = staged_dir(directory)
    try:
        _remove(staged)
        # Everything that may fail comes before the old store goes.
        check(build(staged))
        _remove(directory)
        # A crash between these two lines leaves no store. The next run reads the input again.
        staged.replace(directory)
    except OSError as error:
        raise OutputError(
            f"{directory}: cannot be replaced ({error.strerror}); {writing_remedy(error)}"
        ) from error
    finally:
        with suppress(OSError):
            _remove(staged)


def _remove(directory: Path) -> None:
    # A link is somebody else's: what it points to is not ours.
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory)

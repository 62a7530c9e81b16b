"""Builds a frame store, unless the store of the same input is in place already."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from virnucpro.backend.weights import digest_files
from virnucpro.config import OPEN_RULE, STDIN, FrameRule
from virnucpro.errors import CheckpointError, IdentityMismatchError
from virnucpro.sequences.frame_store.reading import FrameStore, open_frame_store
from virnucpro.sequences.frame_store.writing import build_frame_store
from virnucpro.sequences.records import NAMES_OF_ROWS

logger = logging.getLogger(__name__)


def prepare_frame_store(
    inputs: Sequence[str],
    directory: Path,
    *,
    chunk_length_bp: int,
    min_length_bp: int = 0,
    rule: FrameRule = OPEN_RULE,
) -> None:
    """Build the frame store, unless a resumed run finds the store of the same input in place.

    Args:
        inputs: Paths of nucleotide FASTA or FASTQ files; `-` is standard input.
        directory: Where the store lies.
        chunk_length_bp: The length of chunks.
        min_length_bp: Shorter records get no chunks.
        rule: What of a chunk becomes a row.

    Raises:
        InputError: An input cannot be read.
        IdentityMismatchError: The store in place has another frame rule; nothing was changed.
        CheckpointError: The store cannot be written.
    """
    try:
        store = open_frame_store(directory)
    except CheckpointError:
        pass
    else:
        # Other rows would not fit the finished parts, and building them takes long.
        if store.rule != rule:
            raise IdentityMismatchError(
                f"{directory} belongs to another run: the frame rule is {rule} now and was "
                f"{store.rule} there. Give another output directory (-o), start afresh with "
                "--force, or go back to the classifier and settings of that run"
            )
        if _is_of_input(store, inputs, (chunk_length_bp, min_length_bp)):
            logger.info("the %s of the earlier run are used again", NAMES_OF_ROWS[rule.kind])
            return
    store = build_frame_store(
        inputs,
        directory,
        chunk_length_bp=chunk_length_bp,
        min_length_bp=min_length_bp,
        rule=rule,
    )
    if store.num_duplicate_ids:
        logger.warning(
            "%d ids belong to several records, which are kept apart in every table: %s",
            store.num_duplicate_ids,
            ", ".join(store.duplicate_ids(limit=5)),
        )


def _is_of_input(store: FrameStore, inputs: Sequence[str], lengths_bp: tuple[int, int]) -> bool:
    if (store.chunk_length_bp, store.min_length_bp) != lengths_bp:
        return False
    paths = [Path(name) for name in inputs]
    if STDIN in inputs or not all(path.is_file() for path in paths):
        return False
    return [f"sha256:{file['sha256']}" for file in store.inputs] == [
        digest_files([path]) for path in paths
    ]

"""Builds a frame store, unless the store of the same input is in place already."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from virnucpro.backend.weights import digest_files
from virnucpro.config import STDIN
from virnucpro.errors import CheckpointError
from virnucpro.sequences.frame_store.reading import open_frame_store
from virnucpro.sequences.frame_store.writing import build_frame_store

logger = logging.getLogger(__name__)


def prepare_frame_store(
    inputs: Sequence[str], directory: Path, *, chunk_length_bp: int, min_length_bp: int = 0
) -> None:
    """Build the frame store, unless a resumed run finds the store of the same input in place.

    Args:
        inputs: Paths of nucleotide FASTA or FASTQ files; `-` is standard input.
        directory: Where the store lies.
        chunk_length_bp: The length of chunks.
        min_length_bp: Shorter records get no chunks.

    Raises:
        InputError: An input cannot be read.
        CheckpointError: The store cannot be written.
    """
    if _is_built(inputs, directory, (chunk_length_bp, min_length_bp)):
        logger.info("the open frames of the earlier run are used again")
        return
    store = build_frame_store(
        inputs, directory, chunk_length_bp=chunk_length_bp, min_length_bp=min_length_bp
    )
    if store.num_duplicate_ids:
        logger.warning(
            "%d ids belong to several records, which are kept apart in every table: %s",
            store.num_duplicate_ids,
            ", ".join(store.duplicate_ids(limit=5)),
        )


def _is_built(inputs: Sequence[str], directory: Path, wanted: tuple[int, int]) -> bool:
    try:
        store = open_frame_store(directory)
    except CheckpointError:
        return False
    if (store.chunk_length_bp, store.min_length_bp) != wanted:
        return False
    paths = [Path(name) for name in inputs]
    if STDIN in inputs or not all(path.is_file() for path in paths):
        return False
    return [f"sha256:{file['sha256']}" for file in store.inputs] == [
        digest_files([path]) for path in paths
    ]

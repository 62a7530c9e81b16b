"""Reads what a finished run has embedded, chunk by chunk.

Shapes: C chunks, Q numbers of a DNA embedding, P numbers of a protein embedding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import Float64Array
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.sequences.frame_store import FrameStore


def read_chunk_embeddings(run: Path, store: FrameStore) -> Float64Array:
    """Return float64 (C, Q + P): each chunk's DNA embedding, and the mean of its proteins'.

    Args:
        run: The output directory, with its checkpoints.
        store: Its frame store. Chunks without a row have zeros.
    """
    # All rows of a chunk have its DNA, so the mean over rows is right for both.
    return np.column_stack([_mean_over_rows(run, store, kind) for kind in ("dna", "protein")])


def _mean_over_rows(run: Path, store: FrameStore, kind: str) -> Float64Array:
    reader = EmbeddingReader(sorted((run / "checkpoints" / kind).glob("*.h5")))
    rows = reader.gather(np.asarray(store.sequences(kind).representatives))  # type: ignore[arg-type]
    num_rows = np.diff(store.chunk_first_frame)
    sums = np.zeros((store.num_chunks, reader.embedding_dim))
    np.add.at(sums, store.find_chunks(np.arange(store.num_rows)), rows)
    return np.asarray(sums / np.maximum(num_rows, 1)[:, None], np.float64)

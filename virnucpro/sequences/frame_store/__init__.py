"""Records and their open frames on disk: built once, then read by every rank and worker.

A store is a directory of flat files without headers, each named after what it holds and its NumPy
type (`.text` for bytes), and a manifest, written last, that makes it complete. Tables of numbers
are memory-mapped. Texts are read piece by piece, because a rank's resident memory would count
their mapped pages. The same input gives the same bytes.

A row is a frame's position in the store, or a record's in a store of records alone: the only key
by which embeddings and scores are joined.
"""

from virnucpro.sequences.frame_store.preparing import prepare_frame_store
from virnucpro.sequences.frame_store.reading import (
    FrameStore,
    RecordStore,
    SequenceSource,
    StoredRecords,
    open_frame_store,
    open_record_store,
)
from virnucpro.sequences.frame_store.writing import build_frame_store, build_record_store

__all__ = [
    "FrameStore",
    "RecordStore",
    "SequenceSource",
    "StoredRecords",
    "build_frame_store",
    "build_record_store",
    "open_frame_store",
    "open_record_store",
    "prepare_frame_store",
]

"""Records and their open frames on disk: built once, then read by every process and worker.

A store is a directory of flat files without headers. A file's name says what it holds and in which
NumPy type (`.text`: bytes). The manifest is written last and makes the store complete. Tables of
numbers are memory-mapped. Texts are read piece by piece, because mapped pages would count as the
process's memory. The same input gives the same bytes.

A row is the position of a frame in the store, or of a record in a store of records. It is the only
key for joining embeddings and scores.
"""

from virnucpro.sequences.frame_store.preparing import prepare_frame_store, prepare_record_store
from virnucpro.sequences.frame_store.reading import (
    FrameStore,
    RecordStore,
    SequenceSource,
    open_frame_store,
    open_record_store,
)
from virnucpro.sequences.frame_store.stored_records import StoredRecords
from virnucpro.sequences.frame_store.writing import (
    StoreSettings,
    build_frame_store,
    build_record_store,
)

__all__ = [
    "FrameStore",
    "RecordStore",
    "SequenceSource",
    "StoreSettings",
    "StoredRecords",
    "build_frame_store",
    "build_record_store",
    "open_frame_store",
    "open_record_store",
    "prepare_frame_store",
    "prepare_record_store",
]

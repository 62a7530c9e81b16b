"""Recognizing a file of features by its contents, and reading it as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from virnucpro.checkpoints import hdf5
from virnucpro.checkpoints.parts import FORMAT_NAME, FormatVersionError, check_part, read_identity
from virnucpro.errors import CheckpointError, brief, name_few
from virnucpro.legacy.pickles import is_zip, read_torch_file
from virnucpro.legacy.steps import Document, EmbeddingDims, migrate_document

_ROWS_AT_A_TIME = 8192

UNKNOWN = "unknown (migrated)"
"""Written into an identity where an old file does not tell the value."""

MIXED_IDS = (
    "a resumed run of v2.0 may have paired ids with the wrong embeddings, and nothing in the file "
    "tells; check it with --verify"
)
NOT_MARKED = "there is no .done file beside it; its contents are complete"


class Generation(NamedTuple):
    """The program that wrote a file.

    Attributes:
        version: Version of the format; see FORMAT.md.
        name: The program in words.
        notes: What a user should know about such files.
    """

    version: int
    name: str
    notes: tuple[str, ...] = ()


def read_documents(path: Path, dims: EmbeddingDims) -> Iterator[tuple[Generation, Document]]:
    """Yield the contents of a file block by block, as documents of the current version.

    Every document has `ids`, float32 `embeddings` by alphabet, and `precision`.

    Raises:
        CheckpointError: The file is damaged, unsafe, not a file of features, or of a newer version,
            or its values are known to be wrong. The caller adds the path.
    """
    try:
        blocks = [_read_pickle(path)] if is_zip(path) else _read_hdf5(path)
        for generation, document in blocks:
            yield generation, migrate_document(document | {"dims": dims}, generation.version)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})") from error
    # A file of strangers may have anything in the place of a list or a number.
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"is not a file of features ({error!r})") from error


def _read_pickle(path: Path) -> tuple[Generation, Document]:
    document = read_torch_file(path)
    if not isinstance(document, dict):
        raise CheckpointError(f"holds {type(document).__name__}, wanted a dict of features")
    # The keys decide, because generations do not name themselves in the same way.
    if document.keys() >= {"embeddings", "sequence_ids"}:
        generation = Generation(2, "v2.0, batch")
        document["embeddings"] = np.asarray(document["embeddings"])
    elif "data" not in document or not document.keys() & {"nucleotide", "proteins", "ids"}:
        raise CheckpointError(
            f"holds {name_few([*map(brief, document)]) or 'nothing'}: no features"
        )
    elif document.get("version") is None:
        generation = Generation(
            0, "A or C: the original, the fork before v1.0, or proteins of v2.0"
        )
    elif document["version"] == "1.0":
        generation = Generation(1, "D: v1.0, or DNA of v2.0")
    else:
        raise FormatVersionError(
            f"its version is {brief(document['version'])}, and this program reads versions up to "
            "'1.0'; update virnucpro"
        )
    # The original and the fork before v1.0 wrote no marks.
    if generation.version and not path.with_name(f"{path.name}.done").exists():
        generation = generation._replace(notes=(NOT_MARKED,))
    _check_size(path, document)
    return generation, document


def _check_size(path: Path, document: Document) -> None:
    """Refuse a document that would need much more memory than its file needs disk."""
    data: Any = document.get("data", document.get("embeddings"))
    if isinstance(data, list):
        vectors = [item["mean_representation"] if isinstance(item, dict) else item for item in data]
        num_numbers = sum(map(len, vectors))
    else:
        num_numbers = int(np.size(data))
    # A number takes at least 2 bytes (float16).
    if 2 * num_numbers > path.stat().st_size:
        raise CheckpointError(f"claims {num_numbers:,} numbers, more than the file has room for")


def _read_hdf5(path: Path) -> Iterator[tuple[Generation, Document]]:
    if not h5py.is_hdf5(path):
        raise CheckpointError("is neither a file of torch.save nor HDF5")
    with hdf5.open_file(path) as file:
        found = hdf5.read_attribute(file, "format")
        # The shards of v2.0 do not name their format.
        if found is None:
            names = ("embeddings", "sequence_ids")
            if missing := [name for name in names if file.get(name, getlink=True) is None]:
                raise CheckpointError(
                    f"is an HDF5 file of another program: it lacks {' and '.join(missing)}"
                )
            generation = Generation(2, "v2.0, shard", (MIXED_IDS,))
            for ids, embeddings in _read_blocks(file, "sequence_ids"):
                yield generation, {"sequence_ids": ids, "embeddings": embeddings}
        elif found == FORMAT_NAME:
            yield from _read_part(path, file)
        else:
            raise CheckpointError(f"its format is {brief(found)}, which is not known")


def _read_part(path: Path, file: h5py.File) -> Iterator[tuple[Generation, Document]]:
    """Yield the contents of a part that `virnucpro migrate` wrote; refuse the parts of a run."""
    # The digest first: a part that `migrate` wrote is as trustworthy as it is unchanged.
    check_part(path)
    identity = read_identity(path)
    # A run's own parts have rows of its frame store, and mean nothing without it.
    if not identity.weights_identity.startswith(UNKNOWN):
        raise CheckpointError("is a part of virnucpro itself: there is nothing to migrate")
    generation = Generation(3, identity.weights_identity.removeprefix(f"{UNKNOWN}: "))
    kind = {"dnabert-s": "dna", "esm2": "protein"}[identity.backend]
    for ids, embeddings in _read_blocks(file, "ids"):
        document = {"ids": ids, "embeddings": {kind: embeddings}, "precision": identity.precision}
        yield generation, document


def _read_blocks(file: h5py.File, ids_name: str) -> Iterator[tuple[list[str], Any]]:
    ids = hdf5.open_strings(file, ids_name)
    embeddings = hdf5.open_dataset(file, "embeddings", np.dtype("<f4"), ndim=2)
    if len(ids) != len(embeddings):
        raise CheckpointError(f"{len(ids)} ids and {len(embeddings)} rows; it is damaged")
    # An empty file yields one empty block, so that the caller learns its generation.
    for start in range(0, max(1, len(ids)), _ROWS_AT_A_TIME):
        stop = min(start + _ROWS_AT_A_TIME, len(ids))
        yield hdf5.read_strings(ids, start, stop), embeddings[start:stop]

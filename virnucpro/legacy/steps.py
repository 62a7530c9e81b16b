"""The steps from each version of the checkpoint format to the next: pure functions on documents.

A document is the content of one file, or of one block of a large file. Its keys by version:

0   `nucleotide`, `proteins` or `ids`; `data`; training files add `labels`
1   the same, `version` and `status`; `precision` if v1.0 did not write the file
2   `sequence_ids`; `embeddings`, an array with a line for each; `kind` and `precision` if known
3   `ids`; `embeddings`, by alphabet a float32 array with a line for each id; `precision`

All versions keep `labels`. `dims` is always the `EmbeddingDims` that the reader expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import Float32Array
from virnucpro.checkpoints.hdf5 import encode_strings
from virnucpro.config.shared import DNA_DIM, PROTEIN_DIM
from virnucpro.errors import CheckpointError, brief

Document = dict[str, Any]

# No header of a sequence file is longer, and a hostile file could repeat a long id forever.
_MAX_ID_LENGTH = 10_000

_PADDED = (
    "holds DNA features of the fork's first batching (generation B), which averaged over padding "
    "as well: the values are wrong; compute them again"
)


class EmbeddingDims(NamedTuple):
    """Numbers in an embedding of each alphabet; the defaults belong to the published models."""

    dna: int = DNA_DIM
    protein: int = PROTEIN_DIM


class UnmatchedRowsError(CheckpointError):
    """A file has more ids than embeddings, or fewer.

    Attributes:
        kind: `dna`, `protein` or `merged`.
        ids: The ids.
        num_rows: Number of embeddings.
    """

    def __init__(self, kind: str, ids: Sequence[str], num_rows: int) -> None:
        super().__init__(
            f"{len(ids)} ids and {num_rows} rows: nothing tells which row belongs to which id"
            + (
                "; the fork dropped rows without a partner, which shifted later ids: give the DNA "
                "and protein features as well, and virnucpro joins them again"
                if kind == "merged"
                else ""
            )
        )
        self.kind = kind
        self.ids = ids
        self.num_rows = num_rows

    def __reduce__(self) -> tuple[Any, ...]:
        # It comes from another process, and Python would make it again from its message alone.
        return UnmatchedRowsError, (self.kind, self.ids, self.num_rows)


def migrate_document(document: Document, version: int) -> Document:
    """Return `document`, which has this version, in the current version.

    Raises:
        CheckpointError: The document is damaged, or its values are known to be wrong.
    """
    # Each step knows two neighbouring versions only. So a new version needs one new step.
    for step in STEPS[version:]:
        document = step(document)
    return document


def add_version(document: Document) -> Document:
    """Return version 1 of a document: what the fork's v1.0 would have written.

    Generation A (the original) and C (the fork before v1.0) have the same keys and are right; A's
    proteins are not in input order. Generation B (the fork's first batching) stacked its features
    into one tensor, and averaged the DNA's over padding; its merged files have `labels: None`.
    v2.0 writes its protein features like C.

    Raises:
        CheckpointError: The document is of generation B.
    """
    # Generation B padded its batches, and its averages include the padding.
    stacked_dna = "nucleotide" in document and not isinstance(document["data"], list)
    if stacked_dna or ("ids" in document and document.get("labels", ()) is None):
        raise CheckpointError(_PADDED)
    return document | {"version": "1.0", "status": "complete", "precision": "unknown"}


def stack_features(document: Document) -> Document:
    """Return version 2 of a document: ids and one array, as in the shards of v2.0.

    v1.0 wrote `status: in_progress` first, read the file again, and then wrote it as `complete`.
    DNA features are dicts that repeat the id; protein features are tensors. v1.0 ran ESM-2 in
    float32, because its switch to bfloat16 was off. Nothing tells the precision of DNA, and of
    files without a version.

    Raises:
        CheckpointError: The document is unfinished or damaged.
    """
    if document["status"] != "complete":
        raise CheckpointError(f"was not finished: its status is {brief(document['status'])}")
    if "nucleotide" in document:
        kind, ids = "dna", document["nucleotide"]
        labels = [item["label"] for item in document["data"]]
        # Lists of different lengths are found later, with an error that says more.
        if len(labels) == len(ids) and labels != ids:
            raise CheckpointError("the ids in `nucleotide` are not those in `data`")
        data = [item["mean_representation"] for item in document["data"]]
    elif "proteins" in document:
        kind, ids, data = "protein", document["proteins"], document["data"]
    else:
        kind, ids, data = "merged", document["ids"], document["data"]
    return {
        "dims": document["dims"],
        "kind": kind,
        "sequence_ids": ids,
        "embeddings": _stack(data),
        "precision": document.get("precision", "fp32" if kind == "protein" else "unknown"),
        **_keep_labels(document),
    }


def split_alphabets(document: Document) -> Document:
    """Return version 3 of a document: the embeddings by alphabet, checked.

    The shards and batches of v2.0 do not say what they hold, so that their width decides. ESM-2
    ran in float16. Merged features are DNA, then protein.

    Raises:
        CheckpointError: The document is damaged.
        UnmatchedRowsError: It has more ids than embeddings, or fewer.
    """
    dims: EmbeddingDims = document["dims"]
    ids, embeddings = document["sequence_ids"], np.asarray(document["embeddings"])
    kind: str = document.get("kind") or _tell_kind(embeddings, dims)
    wanted = {"dna": dims.dna, "protein": dims.protein, "merged": sum(dims)}[kind]
    # An empty file has no width that could be wrong.
    if embeddings.ndim != 2 or (embeddings.shape[1] != wanted and len(embeddings)):
        raise CheckpointError(
            f"{kind} embeddings are {embeddings.shape}, wanted (rows, {wanted}); for other models "
            "give --dna-dim and --protein-dim"
        )
    _check_ids(ids)
    if len(ids) != len(embeddings):
        raise UnmatchedRowsError(kind, ids, len(embeddings))
    if embeddings.dtype.kind != "f":
        raise CheckpointError(f"the embeddings are {embeddings.dtype}, wanted floating-point")
    # float32 holds every value of float16, so nothing is rounded.
    embeddings_NE: Float32Array = embeddings.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(embeddings_NE).all(axis=1))
    if len(bad):
        raise CheckpointError(
            f"{len(bad)} of {len(ids)} embeddings hold NaN or infinity (first: {ids[bad[0]]})"
        )
    if kind == "merged":
        by_alphabet = {"dna": embeddings_NE[:, : dims.dna], "protein": embeddings_NE[:, dims.dna :]}
    else:
        by_alphabet = {kind: embeddings_NE}
    return {
        "dims": dims,
        "ids": ids,
        "embeddings": by_alphabet,
        "precision": document.get("precision", "fp16"),
        **_keep_labels(document),
    }


STEPS = (add_version, stack_features, split_alphabets)
"""The step from each version to the next; the index is the version."""


def _keep_labels(document: Document) -> Document:
    return {"labels": document["labels"]} if "labels" in document else {}


def _stack(data: Any) -> Any:
    """Return a list of vectors of one length as an array; return anything else as it is."""
    if not isinstance(data, list):
        return data
    # NumPy itself would make an array of objects, or an error that names no width.
    widths = {len(vector) for vector in data}
    if len(widths) > 1:
        raise CheckpointError(f"embeddings of different lengths: {sorted(widths)}")
    return np.array(data, np.float32).reshape(len(data), max(widths, default=0))


def _tell_kind(embeddings: Any, dims: EmbeddingDims) -> str:
    width = embeddings.shape[1] if embeddings.ndim == 2 else 0
    return "dna" if width == dims.dna != dims.protein else "protein"


def _check_ids(ids: Any) -> None:
    if not isinstance(ids, list) or not all(
        isinstance(name, str) and len(name) <= _MAX_ID_LENGTH and "\0" not in name for name in ids
    ):
        raise CheckpointError("the ids are not a list of names")
    # One at a time, because a pickle may repeat a long id forever.
    for name in ids:
        encode_strings([name])

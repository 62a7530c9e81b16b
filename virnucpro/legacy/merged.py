"""Reading the original's labelled merged features, to train a classifier on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.errors import CheckpointError
from virnucpro.legacy.documents import read_documents
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.sequences.records import FRAME_ID
from virnucpro.training.corpus import Corpus, InputClass


def read_merged(
    paths: Sequence[str], dims: EmbeddingDims
) -> tuple[Corpus, Float32Array, list[str]]:
    """Return the labelled records of merged files, and the features of their frames.

    The original has one directory for each kind of sequences, so that a directory is a class: all
    its files must have the same label. The ids tell the records and chunks.

    Args:
        paths: Files with `ids`, `data` and `labels` (0: others, 1: virus).
        dims: Numbers in the embeddings.

    Returns:
        The corpus; float32 (F, D), the features in the order of its frames; and the precision of
        each file.

    Raises:
        CheckpointError: A file is damaged, unsafe, unlabelled or contradicts another.
    """
    viral_of_directory: dict[str, bool] = {}
    features, ids, directories, precisions = [], [], [], []
    for path in map(Path, paths):
        document = _read_file(path, dims)
        directory = str(path.parent)
        label = _read_label(path, document)
        # A class is viral or it is not: the balance of the training needs that.
        if viral_of_directory.setdefault(directory, label) != label:
            raise CheckpointError(
                f"{path}: its label is {int(label)}, and that of another file in {directory} is "
                f"{int(not label)}; a directory holds one kind of sequences"
            )
        embeddings = document["embeddings"]
        features.append(np.concatenate([embeddings["dna"], embeddings["protein"]], axis=1))
        ids += document["ids"]
        directories += [directory] * len(document["ids"])
        precisions.append(document["precision"])
    names = list(viral_of_directory)
    classes = tuple(InputClass(Path(name).name, viral_of_directory[name]) for name in names)
    class_of_frame = np.array([names.index(name) for name in directories], np.int64)
    return _join_frames(classes, ids, class_of_frame), np.concatenate(features), precisions


def _read_file(path: Path, dims: EmbeddingDims) -> dict[str, Any]:
    try:
        # One block only: files of torch.save are read as a whole.
        ((_, document),) = read_documents(path, dims)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # More than one block comes from HDF5 only.
    except ValueError as error:
        raise CheckpointError(f"{path}: is HDF5; wanted the original's merged .pt files") from error
    if len(document["embeddings"]) != len(dims):
        raise CheckpointError(
            f"{path}: holds {', '.join(document['embeddings'])} features; wanted merged ones"
        )
    return document


def _read_label(path: Path, document: dict[str, Any]) -> bool:
    found = np.unique(np.asarray(document.get("labels", []), np.float64))
    if found.tolist() not in ([0.0], [1.0]):
        raise CheckpointError(
            f"{path}: its labels are {found.tolist() or 'missing'}, wanted 0 (others) or 1 "
            "(virus) for all of the file"
        )
    return bool(found[0])


def _join_frames(
    classes: tuple[InputClass, ...], ids: Sequence[str], class_of_frame: Int64Array
) -> Corpus:
    """Return the corpus of frames; neighbours with the same record and chunk belong together."""
    matches = [FRAME_ID.fullmatch(name) for name in ids]
    record_names = [
        match["record"] if match else name for match, name in zip(matches, ids, strict=True)
    ]
    numbers = [int(match["number"]) - 1 if match else 0 for match in matches]
    record_keys = list(zip(record_names, class_of_frame.tolist(), strict=True))
    # A dict keeps the order in which records first occur, and each of them once.
    records = dict.fromkeys(record_keys)
    record_index = {key: index for index, key in enumerate(records)}
    record_of_frame = [record_index[key] for key in record_keys]
    chunk_keys = list(zip(record_of_frame, numbers, strict=True))
    # A new chunk begins where the record or the number of the chunk changes.
    first = [index for index, (a, b) in enumerate(pairwise([None, *chunk_keys])) if a != b]
    chunk_record = np.array([record_of_frame[index] for index in first], np.int64)
    return Corpus(
        classes,
        [name for name, _ in records],
        np.array([class_index for _, class_index in records], np.int64),
        chunk_record,
        np.array([numbers[index] for index in first], np.int64),
        np.array([*first, len(ids)], np.int64),
        np.ones(len(first), np.bool_),
    )

"""`checkpoints`: says what checkpoints of every version are, and whether they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from virnucpro.backend.arrays import split_rows
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.backend.weights import check_torch_zip
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.hdf5 import open_file, read_attribute
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import (
    FORMAT_NAME,
    FORMAT_VERSION,
    check_part,
    finished_parts,
    finished_rows,
    read_identity,
)
from virnucpro.checkpoints.run_directory import RunDirectory, find_run
from virnucpro.errors import CheckpointError, WeightsError, count
from virnucpro.legacy.documents import NOT_MARKED
from virnucpro.legacy.joining import inspect_file
from virnucpro.legacy.old_runs import FEATURE_SUFFIXES, list_files
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.sequences.frame_store import FrameStore, open_frame_store
from virnucpro.sequences.records import NAME_OF_ROW


@dataclass
class FileSummary:
    """What one file is and holds.

    Attributes:
        path: The file.
        num_bytes: Size of the file.
        is_marked: Whether there is a `.done` file beside it.
        version: Version of the format; None if it is unknown.
        what: The program that wrote the file, in words.
        num_rows: Number of embeddings; None if the file was not read.
        dims: Numbers in an embedding, by alphabet or by backend.
        precision: Precision of the embeddings, or `unknown`.
        identity: Identity of a part of the current version.
        notes: What a user should know about the file.
        error: Why the file cannot be used; None if it can.
    """

    path: Path
    num_bytes: int
    is_marked: bool
    version: int | None = None
    what: str = "unknown"
    num_rows: int | None = None
    dims: dict[str, int] = field(default_factory=dict)
    precision: str = "unknown"
    identity: Identity | None = None
    notes: list[str] = field(default_factory=list)
    error: str | None = None


def summarize_files(
    place: Path, dims: EmbeddingDims, *, digests: bool, load: bool = True
) -> Iterator[FileSummary]:
    """Yield a summary of each file below a directory that may be a checkpoint, or of one file.

    A bad file raises no error.

    Args:
        place: A directory, a run, a part, the result of `embed`, or features of an older program.
        dims: Numbers in the embeddings of older files, which do not tell what they hold.
        digests: Whether to read entire parts, and compare their digests.
        load: Whether to read older files; otherwise only their structure is checked.
    """
    run = find_run(place)
    # `list_files` leaves out our own directory, in which this command must look as well.
    # `directory/prefix` is a run and no path, so only its checkpoints are there to look at.
    folders = [run.screen.checkpoints_dir if run.prefix else place, run.checkpoints_dir]
    paths = [place]
    if not place.is_file():
        files = (path for folder in folders if folder.is_dir() for path in list_files(folder))
        # Each once: the screen's directory is mostly among the checkpoints.
        paths = [path for path in dict.fromkeys(files) if path.suffix in FEATURE_SUFFIXES]
    for path in paths:
        is_marked = path.with_name(f"{path.name}.done").is_file()
        summary = FileSummary(path, path.stat().st_size, is_marked)
        try:
            if _is_ours(path):
                _summarize_part(summary, digests=digests)
            elif load:
                _summarize_legacy(summary, dims)
            # Old files are not loaded here, so only what costs nothing is checked.
            elif not h5py.is_hdf5(path):
                check_torch_zip(path)
        except (CheckpointError, WeightsError) as error:
            # The path stands before the reason already.
            summary.error = str(error).removeprefix(f"{path}: ")
        yield summary


def _is_ours(path: Path) -> bool:
    # The ending says nothing: the shards of v2.0 are .h5 files as well.
    if not h5py.is_hdf5(path):
        return False
    with open_file(path) as file:
        return read_attribute(file, "format") == FORMAT_NAME


def _summarize_part(summary: FileSummary, *, digests: bool) -> None:
    path = summary.path
    summary.what = "part"
    identity = summary.identity = read_identity(path)
    summary.version = FORMAT_VERSION
    summary.precision, summary.dims = identity.precision, {identity.backend: identity.embedding_dim}
    reader = EmbeddingReader([path])
    summary.num_rows = reader.num_rows
    rows = finished_rows([path])
    if len(rows) != reader.num_rows or (len(rows) and rows[0] < 0):
        raise CheckpointError("has negative or repeated rows")
    # A part of a run needs its mark. The result of `embed` has none if a sequence did not fit.
    if summary.is_marked or path.match("part-*.h5"):
        check_part(path, full=digests)
        return
    # Whoever moved it may have left its mark behind, but it must have ids.
    reader.gather_ids(rows[:1])
    summary.notes.append("there is no .done file beside it: its digest cannot be compared")
    for block in split_rows(0, len(rows) if digests else 0):
        if not np.isfinite(reader.gather(rows[block])).all():
            raise CheckpointError("holds embeddings that are NaN or infinite")


def _summarize_legacy(summary: FileSummary, dims: EmbeddingDims) -> None:
    report = inspect_file(summary.path, dims)
    summary.precision = report.precision
    summary.error = report.error
    if report.generation is not None:
        summary.version, summary.what = report.generation.version, report.generation.name
        # Whether there is a mark has a field of its own.
        summary.notes += [note for note in report.generation.notes if note != NOT_MARKED]
        summary.num_rows = len(report.ids)
        summary.dims = {alphabet: getattr(dims, alphabet) for alphabet in report.values}


@dataclass(frozen=True)
class RunSummary:
    """The progress of a run.

    Attributes:
        num_frames: Number of rows: open frames or stretches.
        frame_rule: What of a chunk is a row.
        chunk_length_bp: Length of the chunks.
        wanted: By alphabet the number of distinct sequences to embed.
        finished: By alphabet the number of sequences in finished parts.
        errors: Contradictions between the frame store and the parts.
    """

    num_frames: int
    frame_rule: str
    chunk_length_bp: int
    wanted: dict[Alphabet, int]
    finished: dict[Alphabet, int]
    errors: list[str]


def summarize_progress(directory: Path, *, digests: bool) -> RunSummary | None:
    """Return the progress of the run in `directory`; None if there is no run.

    Args:
        directory: A run's directory, or any other.
        digests: Whether to read the entire frame store, and compare its digests.

    Raises:
        CheckpointError: The frame store is damaged, or all checkpoints are gone.
    """
    layout = find_run(directory)
    if layout.has_lost_checkpoints():
        link = layout.checkpoints_dir
        raise CheckpointError(
            f"{link}: is a link to {link.readlink()}, which is not there; mount or move it back, "
            "or name the new place with `predict --checkpoint-dir PLACE --resume`"
        )
    if not layout.frame_store_dir.is_dir():
        return None
    store = open_frame_store(layout.frame_store_dir, verify=digests)
    summary = RunSummary(store.num_rows, str(store.rule), store.chunk_length_bp, {}, {}, [])
    for alphabet in ALPHABETS:
        # Identical sequences are embedded once, so fewer rows are wanted than there are frames.
        wanted = np.unique(store.sequences(alphabet).representatives)
        summary.wanted[alphabet] = len(wanted)
        try:
            summary.finished[alphabet] = _count_finished(layout, alphabet, store, wanted)
        except CheckpointError as error:
            summary.errors.append(str(error))
    return summary


def _count_finished(
    layout: RunDirectory, alphabet: Alphabet, store: FrameStore, wanted: np.ndarray[Any, Any]
) -> int:
    parts = finished_parts(layout.parts_dir(alphabet))
    rows = finished_rows(parts)
    if not np.isin(rows, wanted).all():
        raise CheckpointError(
            f"{layout.parts_dir(alphabet)}: has rows that are not among the "
            f"{count(store.num_rows, NAME_OF_ROW[store.rule.kind])} of the run"
        )
    # Parts of two runs may lie here if somebody has copied them together.
    identities = [read_identity(path) for path in parts]
    for path, identity in zip(parts, identities, strict=True):
        store.check_part(path, identity)
        differences = identities[0].differences(identity)
        if differences:
            raise CheckpointError(f"{path}: {'; '.join(differences)}")
    return len(rows)

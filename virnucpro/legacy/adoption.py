"""Taking into a run what an older program, or `migrate`, left in its directory.

Old features are found by the ids of open frames, and become parts of this run. What cannot be told
apart, or stands for another sequence than the same id does here, is left to be computed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from virnucpro.backend.interface import Alphabet
from virnucpro.checkpoints.parts import (
    Identity,
    IntArray,
    finished_parts,
    finished_rows,
    next_part_number,
    read_identity,
)
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.errors import CheckpointError
from virnucpro.legacy.joining import (
    BoolArray,
    Choice,
    Conversion,
    DigestArray,
    FileReport,
    choose_rows,
    convert_file,
    digest_ids,
    inspect_file,
    run_parallel,
)
from virnucpro.legacy.old_runs import (
    fasta_files,
    feature_files,
    read_expected_length,
    read_fasta,
    run_parts,
)
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.sequences.frame_store import FrameStore

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 65_536
_MAX_PROCESSES = 4
_NAMES = {"dna": "DNA", "protein": "protein"}


def adopt_legacy_run(
    directory: RunDirectory, store: FrameStore, identities: Mapping[Alphabet, Identity]
) -> dict[Alphabet, int]:
    """Write parts of this run from what an old one left in its directory, and count their rows.

    Called by one process of a run that resumes, before the others look for finished parts. The old
    files stay as they are. Nothing happens where nothing is missing, or nothing old is there.

    Args:
        directory: The run's directory.
        store: The run's open frames.
        identities: Of the run's parts, for each alphabet; whoever resumes vouches that the old
            features were made with the same models.

    Raises:
        CheckpointError: The disk refuses.
    """
    places = run_parts(directory.path, directory.stem)
    paths = [path for place in places for path in feature_files(place)]
    if not paths or _is_refused(directory, identities):
        return {}
    missing = {name: _missing_rows(directory, store, name) for name in identities}
    if not any(rows.any() for rows in missing.values()):
        return {}
    length_bp = read_expected_length(directory.path)
    if length_bp not in (None, store.chunk_length_bp):
        logger.warning(
            "%s: the old run there cut chunks of %d bp, this one %d: nothing of it is used",
            directory.path,
            length_bp,
            store.chunk_length_bp,
        )
        return {}
    dims = EmbeddingDims(**{name: one.embedding_dim for name, one in identities.items()})
    jobs = min(_MAX_PROCESSES, os.cpu_count() or 1)
    reports = list(run_parallel(_Inspector(dims), paths, jobs))
    choice = choose_rows(reports)
    rows_of_ids = _FrameIds(store)
    tasks = []
    targets = {
        name: _Target(store, name, missing[name], _trusted_rows(places, store, name, rows_of_ids))
        for name in identities
    }
    for rank, (report, taken) in enumerate(zip(reports, choice.taken, strict=True)):
        _tell(report)
        rows = {
            name: targets[name].claim(np.where(mask, rows_of_ids.find(report.ids), -1))
            for name, mask in taken.items()
        }
        if any((found >= 0).any() for found in rows.values()):
            tasks.append(_make_task(directory, dims, identities, rank, report.path, rows))
    for _ in run_parallel(convert_file, tasks, jobs):
        pass
    return _summarize(tasks, choice)


class _Inspector:
    """`inspect_file` with its dims, picklable for other processes."""

    def __init__(self, dims: EmbeddingDims) -> None:
        self._dims = dims

    def __call__(self, path: Path) -> FileReport:
        return inspect_file(path, self._dims)


def _is_refused(directory: RunDirectory, identities: Mapping[Alphabet, Identity]) -> bool:
    """Tell whether parts of another run are there, over which this one is about to end."""
    for alphabet, identity in identities.items():
        for part in finished_parts(directory.parts_dir(alphabet)):
            # A damaged part will be set aside and computed again.
            with suppress(CheckpointError):
                if read_identity(part) != identity:
                    return True
    return False


def _missing_rows(directory: RunDirectory, store: FrameStore, alphabet: Alphabet) -> BoolArray:
    """Return bool (frames,): the rows that this run has yet to embed."""
    representatives = store.sequences(alphabet).representatives
    missing: BoolArray = representatives == np.arange(store.num_frames)
    for part in finished_parts(directory.parts_dir(alphabet)):
        with suppress(CheckpointError):
            missing[finished_rows([part])] = False
    return missing


class _FrameIds:
    """The rows of open frames by the digests of their ids; an id of several frames has none."""

    def __init__(self, store: FrameStore) -> None:
        starts = range(0, store.num_frames, _ROWS_AT_ONCE)
        blocks = [
            digest_ids(store.frame_ids(start, min(start + _ROWS_AT_ONCE, store.num_frames)))
            for start in starts
        ]
        digests = np.concatenate([np.empty(0, np.uint64), *blocks])
        ids, rows, counts = np.unique(digests, return_index=True, return_counts=True)
        self._ids, self._rows = ids[counts == 1], rows[counts == 1]

    def find(self, ids: DigestArray) -> IntArray:
        """Return int64 (N,): the row of each id, -1 where there is none."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        places = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._rows[places], -1)


def _trusted_rows(
    places: Sequence[Path], store: FrameStore, alphabet: Alphabet, rows_of_ids: _FrameIds
) -> BoolArray:
    """Return bool (frames,): the rows whose sequence the old run had under the same id.

    Without any of its sequences, all of them: then the ids have to do.
    """
    trusted = np.zeros(store.num_frames, np.bool_)
    paths = [path for place in places for path, kind in fasta_files(place) if kind == alphabet]
    for path in paths:
        for records in read_fasta(path, alphabet):
            rows = rows_of_ids.find(digest_ids([record.id for record in records]))
            known = np.flatnonzero(rows >= 0)
            here = store.read_sequences(alphabet, rows[known])
            same = [
                records[index].sequence.upper() == sequence
                for index, sequence in zip(known.tolist(), here, strict=True)
            ]
            trusted[rows[known][same]] = True
    if not paths:
        logger.warning(
            "the old run left no %s sequences to compare with: its embeddings are taken by the "
            "names of the frames alone",
            _NAMES[alphabet],
        )
        trusted[:] = True
    return trusted


class _Target:
    """The rows of one alphabet that are wanted from old files, each of which is given out once."""

    def __init__(
        self, store: FrameStore, alphabet: Alphabet, missing: BoolArray, trusted: BoolArray
    ) -> None:
        self._representatives = store.sequences(alphabet).representatives
        self._wanted = missing
        self._trusted = trusted

    def claim(self, rows: IntArray) -> IntArray:
        """Return int64 (N,): the rows to write for what was found at `rows`, -1 for nothing."""
        claimed = np.full(len(rows), -1)
        usable = np.flatnonzero(rows >= 0)
        usable = usable[self._trusted[rows[usable]]]
        targets = self._representatives[rows[usable]]
        unique, first = np.unique(targets, return_index=True)
        wanted = self._wanted[unique]
        claimed[usable[first[wanted]]] = unique[wanted]
        self._wanted[unique] = False
        return claimed


def _tell(report: FileReport) -> None:
    if report.error is not None:
        logger.warning("%s: not used: %s", report.path, report.error)
    elif report.generation is not None:
        for note in report.generation.notes:
            logger.warning("%s: %s", report.path, note)
        logger.info(
            "%s: %d %s embeddings, %s, computed in %s precision",
            report.path,
            len(report.ids),
            report.kind,
            report.generation.name,
            report.precision,
        )


def _make_task(
    directory: RunDirectory,
    dims: EmbeddingDims,
    identities: Mapping[Alphabet, Identity],
    rank: int,
    path: Path,
    rows: Mapping[Alphabet, IntArray],
) -> Conversion:
    directories = {name: directory.parts_dir(name) for name in rows}
    numbers = {name: next_part_number(directories[name], rank) for name in rows}
    chosen = {name: identities[name] for name in rows}
    return Conversion(path, dims, rank, rows, directories, chosen, numbers, with_ids=False)


def _summarize(tasks: Sequence[Conversion], choice: Choice) -> dict[Alphabet, int]:
    adopted: dict[Alphabet, int] = {}
    for task in tasks:
        for alphabet, rows in task.rows.items():
            adopted[alphabet] = adopted.get(alphabet, 0) + int((rows >= 0).sum())
    for alphabet, num_rows in adopted.items():
        logger.warning(
            "%s: %d embeddings of an older run were taken over (%d ids with several values were "
            "not); that they come from the same weights is for you to know",
            _NAMES[alphabet],
            num_rows,
            choice.num_ambiguous.get(alphabet, 0),
        )
    return adopted

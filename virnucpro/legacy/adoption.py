"""Taking the features that an older program or `migrate` left in a run's directory into the run.

Old features are found by the ids of open frames, and become parts of this run. The run computes the
frames whose id is ambiguous, or belonged to another sequence in the old run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import BoolArray, Int64Array, split_rows
from virnucpro.backend.interface import Alphabet
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import finished_parts, finished_rows, next_part_number
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import OPEN_RULE
from virnucpro.errors import CheckpointError, count_who
from virnucpro.legacy.joining import (
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

# A process takes longer to start than to read so much.
_LITTLE_BYTES = 32 << 20
_NAMES = {"dna": "DNA", "protein": "protein"}


def find_old_features(directory: RunDirectory) -> list[Path]:
    """Return the files of embeddings that an old run has left in the run's directory."""
    places = run_parts(directory.path, directory.stem)
    return [path for place in places for path in feature_files(place)]


def adopt_legacy_run(
    directory: RunDirectory,
    store: FrameStore,
    identities: Mapping[Alphabet, Identity],
    rows: Mapping[Alphabet, Int64Array],
) -> dict[Alphabet, int]:
    """Write the features of an old run as parts of this run, and return their numbers of rows.

    One process of a resumed run calls this before the other processes look for finished parts, and
    after it has refused parts of another run. The old files stay as they are. If no row is missing,
    or there are no old files, nothing happens.

    Args:
        directory: The run's directory.
        store: The run's open frames.
        identities: By alphabet the identity of the run's parts. Whoever resumes is responsible that
            the old features come from the same models.
        rows: By alphabet the rows that the run is to embed.

    Returns:
        By alphabet the number of rows that were written.

    Raises:
        CheckpointError: An old file has changed meanwhile.
        OutputError: A part cannot be written.
    """
    paths = find_old_features(directory)
    if not paths:
        return {}
    if store.rule != OPEN_RULE:
        reason = f"the old run embedded open frames, and the frame rule of this run is {store.rule}"
        return _leave_out(directory, reason)
    # Before old files are opened: a run that has all its rows must not read gigabytes again.
    missing = {name: _missing_rows(directory, store, name, rows[name]) for name in identities}
    if not any(are_missing.any() for are_missing in missing.values()):
        return {}
    # Frames of other chunks may have the same names, and other sequences.
    length_bp = read_expected_length(directory.path)
    if length_bp not in (None, store.chunk_length_bp):
        reason = f"the old run used chunks of {length_bp} bp, and this run {store.chunk_length_bp}"
        return _leave_out(directory, reason)
    is_little = sum(path.stat().st_size for path in paths) <= _LITTLE_BYTES
    jobs = 1 if is_little else None
    # All files are looked at before any is used: an id is ambiguous only by what other files say.
    reports = list(run_parallel(partial(inspect_file, dims=_dims(identities)), paths, jobs))
    choice = choose_rows(reports)
    rows_of_ids = _FrameIds(store)
    places = run_parts(directory.path, directory.stem)
    targets = {
        name: _Target(store, name, missing[name], _trusted_rows(places, store, name, rows_of_ids))
        for name in identities
    }
    for report in reports:
        _tell(report)
    tasks = list(_plan_tasks(directory, identities, targets, rows_of_ids, reports, choice))
    for _ in run_parallel(convert_file, tasks, jobs):
        pass
    return _summarize(tasks, choice)


def _leave_out(directory: RunDirectory, reason: str) -> dict[Alphabet, int]:
    logger.warning("%s: %s: its features are not used", directory.path, reason)
    return {}


def _plan_tasks(
    directory: RunDirectory,
    identities: Mapping[Alphabet, Identity],
    targets: Mapping[Alphabet, _Target],
    rows_of_ids: _FrameIds,
    reports: Sequence[FileReport],
    choice: Choice,
) -> Iterator[Conversion]:
    """Yield the parts to write from each file that has rows which are wanted."""
    # Each file writes with a rank of its own, so that parts of two files never share a name.
    for rank, (report, taken) in enumerate(zip(reports, choice.taken, strict=True)):
        rows = {
            name: targets[name].claim(np.where(mask, rows_of_ids.find(report.ids), -1))
            for name, mask in taken.items()
        }
        if not any((found >= 0).any() for found in rows.values()):
            continue
        places = {name: directory.parts_dir(name) for name in rows}
        yield Conversion(
            path=report.path,
            dims=_dims(identities),
            rank=rank,
            rows=rows,
            directories=places,
            identities={name: identities[name] for name in rows},
            # The numbers of this run's own parts, damaged ones included, are not used again.
            first_numbers={name: next_part_number(place, rank) for name, place in places.items()},
            with_ids=False,
        )


def _dims(identities: Mapping[Alphabet, Identity]) -> EmbeddingDims:
    return EmbeddingDims(**{name: one.embedding_dim for name, one in identities.items()})


def _missing_rows(
    directory: RunDirectory, store: FrameStore, alphabet: Alphabet, rows: Int64Array
) -> BoolArray:
    """Return which of `rows` this run still has to embed: bool (num_frames,)."""
    missing = np.zeros(store.num_rows, np.bool_)
    missing[rows] = True
    for part in finished_parts(directory.parts_dir(alphabet)):
        # A damaged part does not count: its rows are missing, and may come from the old files.
        with suppress(CheckpointError):
            missing[finished_rows([part])] = False
    return missing


class _FrameIds:
    """The rows of open frames by the digests of their ids, without ids of several frames."""

    def __init__(self, store: FrameStore) -> None:
        blocks = [
            digest_ids(store.frame_ids(block.start, block.stop))
            for block in split_rows(0, store.num_rows)
        ]
        # The empty array stands for a store without rows, which has no blocks.
        digests = np.concatenate([np.empty(0, np.uint64), *blocks])
        ids, rows, counts = np.unique(digests, return_index=True, return_counts=True)
        self._ids, self._rows = ids[counts == 1], rows[counts == 1]

    def find(self, ids: DigestArray) -> Int64Array:
        """Return the row of each id, or -1 if there is none: int64 (N,)."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        places = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[places] == ids, self._rows[places], -1)


def _trusted_rows(
    places: Sequence[Path], store: FrameStore, alphabet: Alphabet, rows_of_ids: _FrameIds
) -> BoolArray:
    """Return which rows had the same sequence in the old run: bool (num_frames,).

    If the old run left no sequences, all rows are trusted by their ids.
    """
    trusted = np.zeros(store.num_rows, np.bool_)
    paths = [path for place in places for path, kind in fasta_files(place) if kind == alphabet]
    for path in paths:
        for records in read_fasta(path, alphabet):
            # The same id may name another sequence if the input was changed between the two runs.
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
            "the old run has no file of its %s sequences: its embeddings are found by the names "
            "of the frames alone",
            _NAMES[alphabet],
        )
        trusted[:] = True
    return trusted


class _Target:
    """The rows of one alphabet that are wanted from old files; each row is given out once."""

    def __init__(
        self, store: FrameStore, alphabet: Alphabet, missing: BoolArray, trusted: BoolArray
    ) -> None:
        self._representatives = store.sequences(alphabet).representatives
        self._wanted = missing
        self._trusted = trusted

    def claim(self, rows: Int64Array) -> Int64Array:
        """Return the rows to write for features of `rows`, or -1 to leave them out: int64 (N,)."""
        claimed = np.full(len(rows), -1)
        usable = np.flatnonzero(rows >= 0)
        usable = usable[self._trusted[rows[usable]]]
        # Equal sequences share one embedding, which belongs to the first of them.
        targets = self._representatives[rows[usable]]
        # Several features of this file may belong to one distinct sequence. One of them is enough.
        unique, first = np.unique(targets, return_index=True)
        wanted = self._wanted[unique]
        claimed[usable[first[wanted]]] = unique[wanted]
        # Claimed: a later file may hold the same row again.
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


def _summarize(tasks: Sequence[Conversion], choice: Choice) -> dict[Alphabet, int]:
    adopted: dict[Alphabet, int] = {}
    for task in tasks:
        for alphabet, rows in task.rows.items():
            adopted[alphabet] = adopted.get(alphabet, 0) + int((rows >= 0).sum())
    # A warning, because nobody but the user knows which weights those were.
    for alphabet, num_rows in adopted.items():
        logger.warning(
            "%s: %s taken over from an older run, and %s not, because the run has several "
            "embeddings of them; make sure that the older run used the same weights",
            _NAMES[alphabet],
            count_who(num_rows, "embedding", "were"),
            count_who(choice.num_ambiguous.get(alphabet, 0), "id", "were"),
        )
    return adopted

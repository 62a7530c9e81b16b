"""Joining many files of features by id: which rows are taken, and writing them as parts.

Every file is read twice, once to look and once to write, and only digests of ids and values stay
in memory between: 16 bytes for a row and alphabet.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from virnucpro.backend.interface import Alphabet
from virnucpro.checkpoints.parts import Identity, IntArray, finished_parts, part_name, write_part
from virnucpro.errors import CheckpointError
from virnucpro.legacy.documents import Generation, read_documents
from virnucpro.legacy.steps import EmbeddingDims, UnmatchedRowsError

ALPHABETS: tuple[Alphabet, Alphabet] = ("dna", "protein")

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
DigestArray = np.ndarray[Any, np.dtype[np.uint64]]
Task = TypeVar("Task")
Result = TypeVar("Result")

_ROWS_PER_PART = 8192


@dataclass
class FileReport:
    """What one file is and holds.

    Attributes:
        path: The file.
        generation: What wrote it; None where that cannot be told.
        precision: What its embeddings were computed in, or `unknown`.
        error: Why it cannot be used; None if it can.
        ids: uint64 (N,), a digest of each id.
        values: For each alphabet uint64 (N,), a digest of each embedding.
        unmatched_rows: The embeddings in a merged file whose ids outnumber them.
    """

    path: Path
    generation: Generation | None = None
    precision: str = "unknown"
    error: str | None = None
    ids: DigestArray = field(default_factory=lambda: np.empty(0, np.uint64))
    values: dict[Alphabet, DigestArray] = field(default_factory=dict)
    unmatched_rows: int | None = None

    @property
    def kind(self) -> str:
        """What it holds: `dna`, `protein` or both, `merged`."""
        return "merged" if len(self.values) == len(ALPHABETS) else "".join(self.values) or "-"


def inspect_file(path: Path, dims: EmbeddingDims) -> FileReport:
    """Return what `path` is, after reading and checking all of it; never raises for its faults."""
    report = FileReport(path)
    ids: list[DigestArray] = []
    values: dict[Alphabet, list[DigestArray]] = {}
    try:
        for generation, document in read_documents(path, dims):
            report.generation, report.precision = generation, document["precision"]
            ids.append(digest_ids(document["ids"]))
            for alphabet, embeddings in document["embeddings"].items():
                lines = (line.tobytes() for line in embeddings)
                values.setdefault(alphabet, []).append(_digest(lines, len(embeddings)))
    except UnmatchedRowsError as error:
        report.error = str(error)
        if error.kind == "merged":
            report.ids, report.unmatched_rows = digest_ids(error.ids), error.num_rows
    except CheckpointError as error:
        report.error = str(error).removeprefix(f"{path}: ")
    else:
        report.ids = np.concatenate(ids)
        report.values = {name: np.concatenate(blocks) for name, blocks in values.items()}
    return report


def digest_ids(ids: Sequence[str]) -> DigestArray:
    """Return uint64 (N,): a digest of each id, of which equal ones have the same."""
    return _digest((name.encode("utf-8", "surrogateescape") for name in ids), len(ids))


def _digest(texts: Iterator[bytes], num_texts: int) -> DigestArray:
    # 64 bits: of 10 million ids, two are alike with a probability of one in 400,000, and their
    # values then differ, so that neither is taken.
    joined = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, np.uint64, num_texts)


class Choice(NamedTuple):
    """Which rows are taken.

    Attributes:
        taken: For each file and alphabet of it bool (N,).
        num_ambiguous: For each alphabet the ids that come with different values.
        num_repeated: For each alphabet the rows that say what another has said.
    """

    taken: list[dict[Alphabet, BoolArray]]
    num_ambiguous: dict[Alphabet, int]
    num_repeated: dict[Alphabet, int]

    def ids(self, reports: Sequence[FileReport], alphabet: Alphabet) -> DigestArray:
        """Return uint64 (n,): the ids that are taken of one alphabet, in the order of the files."""
        kept = [
            report.ids[taken[alphabet]]
            for report, taken in zip(reports, self.taken, strict=True)
            if alphabet in taken
        ]
        return np.concatenate([np.empty(0, np.uint64), *kept])


def choose_rows(reports: Sequence[FileReport]) -> Choice:
    """Return which rows of the files to take, so that every id is there once.

    An id that occurs again with the same values is taken once. One that occurs with different
    values is not taken at all, since nothing tells which are right: several records may have had
    the id, or a resumed run mixed its ids.
    """
    choice = Choice([{} for _ in reports], {}, {})
    for alphabet in ALPHABETS:
        holders = [index for index, report in enumerate(reports) if alphabet in report.values]
        # Merged files come last: of those with a version, the sources tell the precision.
        holders.sort(key=lambda index: reports[index].kind == "merged")
        if not holders:
            continue
        ids = np.concatenate([reports[index].ids for index in holders])
        values = np.concatenate([reports[index].values[alphabet] for index in holders])
        _, first, group = np.unique(ids, return_index=True, return_inverse=True)
        differs = np.bincount(group, values != values[first][group], len(first)) > 0
        taken = np.zeros(len(ids), np.bool_)
        taken[first[~differs]] = True
        choice.num_ambiguous[alphabet] = int(differs.sum())
        choice.num_repeated[alphabet] = int((~differs[group]).sum() - taken.sum())
        ends = np.cumsum([len(reports[index].ids) for index in holders])
        for index, mask in zip(holders, np.split(taken, ends[:-1]), strict=True):
            choice.taken[index][alphabet] = mask
    return choice


def excuse_joined(reports: Sequence[FileReport], choice: Choice) -> None:
    """Turn the error of merged files whose sources are there, and are taken, into a note.

    Args:
        reports: Changed where that is so.
        choice: Which of their rows are taken.
    """
    dna, protein = (choice.ids(reports, alphabet) for alphabet in ALPHABETS)
    joined = np.intersect1d(dna, protein)
    for report in reports:
        if report.unmatched_rows is None:
            continue
        if np.isin(report.ids, joined).sum() >= report.unmatched_rows:
            note = "more ids than rows: joined again from its DNA and protein features"
            report.generation = Generation(0, "A to D: merged", (note,))
            report.error = None


class Conversion(NamedTuple):
    """One file's share of the work: which of its rows go where, as parts.

    Attributes:
        path: The file.
        dims: What to expect in it.
        rank: The number of the file, which its parts are called after.
        rows: For each alphabet int64 (N,), the row that each embedding becomes, or -1.
        directories: For each alphabet where its parts go.
        identities: For each alphabet the parts' identity.
        first_numbers: For each alphabet the number of its first part.
        with_ids: Whether the parts are to hold the ids, too.
    """

    path: Path
    dims: EmbeddingDims
    rank: int
    rows: Mapping[Alphabet, IntArray]
    directories: Mapping[Alphabet, Path]
    identities: Mapping[Alphabet, Identity]
    first_numbers: Mapping[Alphabet, int]
    with_ids: bool


def convert_file(work: Conversion) -> None:
    """Write the parts that come of one file; those that are there already are left alone.

    Raises:
        CheckpointError: The file has changed since it was looked at, or the disk refuses.
    """
    numbers = dict(work.first_numbers)
    done = 0
    for _, document in _read_again(work):
        stop = done + len(document["ids"])
        for alphabet, embeddings in document["embeddings"].items():
            rows = work.rows[alphabet][done:stop]
            chosen = np.flatnonzero(rows >= 0)
            for start in range(0, len(chosen), _ROWS_PER_PART):
                block = chosen[start : start + _ROWS_PER_PART]
                ids = [document["ids"][index] for index in block.tolist()]
                _write_part_once(
                    work, alphabet, numbers[alphabet], rows[block], embeddings[block], ids
                )
                numbers[alphabet] += 1
        done = stop


def _read_again(work: Conversion) -> Iterator[tuple[Generation, dict[str, Any]]]:
    num_rows = 0
    try:
        for generation, document in read_documents(work.path, work.dims):
            num_rows += len(document["ids"])
            yield generation, document
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{work.path}: ")
        raise CheckpointError(f"{work.path}: {reason}") from error
    if any(len(rows) != num_rows for rows in work.rows.values()):
        raise CheckpointError(f"{work.path}: has changed since it was looked at; start again")


def _write_part_once(
    work: Conversion,
    alphabet: Alphabet,
    number: int,
    rows: IntArray,
    embeddings: Any,
    ids: Sequence[str],
) -> None:
    directory, name = work.directories[alphabet], part_name(work.rank, number)
    if directory / name in finished_parts(directory):
        return
    # Left by an interruption between writing and marking.
    (directory / name).unlink(missing_ok=True)
    write_part(
        directory,
        name,
        rows,
        np.ascontiguousarray(embeddings),
        work.identities[alphabet],
        ids if work.with_ids else None,
    )


def run_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[Result]:
    """Yield the results of the tasks in their order, computed in up to `jobs` processes.

    Raises:
        CheckpointError: A process was ended from outside, as for want of memory.
    """
    if min(jobs, len(tasks)) <= 1:
        yield from map(function, tasks)
        return
    # Started afresh: a forked process would inherit threads and CUDA, which do not survive it.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches all processes at once, and this one sees to the others.
    ignoring: dict[str, Any] = {
        "initializer": signal.signal,
        "initargs": (signal.SIGINT, signal.SIG_IGN),
    }
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, **ignoring) as pool:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool as error:
            raise CheckpointError(
                "a process that reads old files has been ended, perhaps for want of memory; try "
                "--jobs 1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

"""Joining many files of features by id: choosing rows, and writing them as parts.

Every file is read twice: first to choose rows, then to write them. Between the two, only digests
of ids and values are in memory: 16 bytes for a row and alphabet.
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

from virnucpro.backend.arrays import BoolArray, Int64Array
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import is_finished, part_name, write_part
from virnucpro.errors import CheckpointError
from virnucpro.legacy.documents import Generation, read_documents
from virnucpro.legacy.steps import EmbeddingDims, UnmatchedRowsError
from virnucpro.runtime.environment import num_cores

DigestArray = np.ndarray[Any, np.dtype[np.uint64]]
Task = TypeVar("Task")
Result = TypeVar("Result")

_ROWS_PER_PART = 8192
# Few, because each process holds a whole file in memory: 600 MB for 10,000 frames.
_MAX_PROCESSES = 4


@dataclass
class FileReport:
    """What one file is and holds.

    Attributes:
        path: The file.
        generation: The program that wrote it; None if it is unknown.
        precision: Precision of the embeddings, or `unknown`.
        error: Why the file cannot be used; None if it can.
        ids: uint64 (N,), a digest of each id.
        values: By alphabet uint64 (N,), a digest of each embedding.
        unmatched_rows: Number of embeddings in a merged file that has more ids than embeddings.
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
        """What the file holds: `dna`, `protein`, or `merged` for both."""
        return "merged" if len(self.values) == len(ALPHABETS) else "".join(self.values) or "-"


def inspect_file(path: Path, dims: EmbeddingDims) -> FileReport:
    """Read and check an entire file, and return what it is; a bad file raises no error."""
    report = FileReport(path)
    ids: list[DigestArray] = []
    values: dict[Alphabet, list[DigestArray]] = {}
    try:
        for generation, document in read_documents(path, dims):
            report.generation, report.precision = generation, document["precision"]
            ids.append(digest_ids(document["ids"]))
            for alphabet, embeddings in document["embeddings"].items():
                # Digests find equal embeddings without keeping these in memory.
                lines = (line.tobytes() for line in embeddings)
                values.setdefault(alphabet, []).append(_digest(lines, len(embeddings)))
    except UnmatchedRowsError as error:
        report.error = str(error)
        # Kept for `excuse_joined`: the sources of a merged file may be among the other files.
        if error.kind == "merged":
            report.ids, report.unmatched_rows = digest_ids(error.ids), error.num_rows
    except CheckpointError as error:
        report.error = str(error).removeprefix(f"{path}: ")
    else:
        # Only a file that was read to its end counts, so nothing is set before.
        report.ids = np.concatenate(ids)
        report.values = {name: np.concatenate(blocks) for name, blocks in values.items()}
    return report


def digest_ids(ids: Sequence[str]) -> DigestArray:
    """Return a digest of each id: uint64 (N,)."""
    return _digest((name.encode("utf-8", "surrogateescape") for name in ids), len(ids))


def _digest(texts: Iterator[bytes], num_texts: int) -> DigestArray:
    # With 64 bits, two of 10 million ids have the same digest with a probability of 1 in 400,000.
    # Their values then differ, so that neither is taken.
    joined = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, np.uint64, num_texts)


class Choice(NamedTuple):
    """Which rows are taken.

    Attributes:
        taken: For each file, by alphabet, bool (N,): the rows that are taken.
        num_ambiguous: By alphabet the number of ids that occur with different values.
        num_repeated: By alphabet the number of rows that repeat an earlier row.
    """

    taken: list[dict[Alphabet, BoolArray]]
    num_ambiguous: dict[Alphabet, int]
    num_repeated: dict[Alphabet, int]

    def ids(self, reports: Sequence[FileReport], alphabet: Alphabet) -> DigestArray:
        """Return the ids taken of one alphabet, in the order of the files: uint64 (n,)."""
        kept = [
            report.ids[taken[alphabet]]
            for report, taken in zip(reports, self.taken, strict=True)
            if alphabet in taken
        ]
        return np.concatenate([np.empty(0, np.uint64), *kept])


def choose_rows(reports: Sequence[FileReport]) -> Choice:
    """Return which rows of the files to take, so that no id is taken twice.

    An id that occurs again with the same values is taken once. An id that occurs with different
    values is not taken at all, because nothing tells which values are right: several records may
    have the id, or a resumed run mixed its ids.
    """
    choice = Choice([{} for _ in reports], {}, {})
    for alphabet in ALPHABETS:
        holders = [index for index, report in enumerate(reports) if alphabet in report.values]
        # The first file with an id wins. Merged files come last: their precision is unknown, and
        # that of their sources may be known.
        holders.sort(key=lambda index: reports[index].kind == "merged")
        if not holders:
            continue
        ids = np.concatenate([reports[index].ids for index in holders])
        values = np.concatenate([reports[index].values[alphabet] for index in holders])
        # `first` is the first place of each id, and so the file that wins.
        _, first, group = np.unique(ids, return_index=True, return_inverse=True)
        # An id differs if one of its values is not that of its first place.
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
    """Turn the error of merged files into a note if the rows of their sources are taken.

    Args:
        reports: The files; changed in place.
        choice: The rows that are taken.
    """
    dna, protein = (choice.ids(reports, alphabet) for alphabet in ALPHABETS)
    # A merged row needs both halves, so only ids that both alphabets have are joined again.
    joined = np.intersect1d(dna, protein)
    for report in reports:
        if report.unmatched_rows is None:
            continue
        if np.isin(report.ids, joined).sum() >= report.unmatched_rows:
            note = "more ids than rows: joined again from its DNA and protein features"
            report.generation = Generation(0, "A to D: merged", (note,))
            report.error = None


class Conversion(NamedTuple):
    """The parts to write from one file.

    Attributes:
        path: The file.
        dims: Numbers in the embeddings.
        rank: Number of the file, which the names of its parts begin with.
        rows: By alphabet int64 (N,), the new row of each embedding, or -1 to leave it out.
        directories: By alphabet the directory of the parts.
        identities: By alphabet the identity of the parts.
        first_numbers: By alphabet the number of the first part.
        with_ids: Whether the parts also hold the ids.
    """

    path: Path
    dims: EmbeddingDims
    rank: int
    rows: Mapping[Alphabet, Int64Array]
    directories: Mapping[Alphabet, Path]
    identities: Mapping[Alphabet, Identity]
    first_numbers: Mapping[Alphabet, int]
    with_ids: bool


def convert_file(work: Conversion) -> None:
    """Write the parts from one file, except for those that are finished already.

    Raises:
        CheckpointError: The file has changed since it was inspected.
        OutputError: A part cannot be written.
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
                path = work.directories[alphabet] / part_name(work.rank, numbers[alphabet])
                numbers[alphabet] += 1
                # An interrupted `migrate` goes on here: the same file gives the same parts under
                # the same names.
                if is_finished(path):
                    continue
                # An interruption between writing and marking leaves a part that does not count.
                path.unlink(missing_ok=True)
                write_part(
                    path.parent,
                    path.name,
                    rows[block],
                    np.ascontiguousarray(embeddings[block]),
                    work.identities[alphabet],
                    [document["ids"][i] for i in block.tolist()] if work.with_ids else None,
                )
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
    # The rows were chosen by place in the file, so another number of them would mix the ids.
    if any(len(rows) != num_rows for rows in work.rows.values()):
        raise CheckpointError(f"{work.path}: has changed since it was inspected; start again")


def run_parallel(
    function: Callable[[Task], Result], tasks: Sequence[Task], jobs: int | None
) -> Iterator[Result]:
    """Yield the results of the tasks in their order, computed in up to `jobs` processes.

    None stands for as many as this machine has cores for, up to 4.

    Raises:
        CheckpointError: A process was killed, for example because the memory was full.
    """
    num_processes = min(jobs or min(_MAX_PROCESSES, num_cores()), len(tasks))
    if num_processes <= 1:
        yield from map(function, tasks)
        return
    # A forked process would inherit threads and CUDA, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches all processes at once, and this one stops the others.
    pool = ProcessPoolExecutor(
        num_processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    with pool:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool as error:
            raise CheckpointError(
                "a process that reads old files was killed, perhaps because the memory is full; "
                "try --jobs 1"
            ) from error
        finally:
            # Otherwise Ctrl-C would wait until all files are read.
            pool.shutdown(cancel_futures=True)

"""`export`: writes the embeddings of a run, or of `migrate`, in the formats of other programs.

Shapes: N rows, D numbers in a row (its DNA embedding, then its protein embedding).
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array, split_rows
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.h5ad import write_h5ad
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import check_part, finished_parts, finished_rows, read_identity
from virnucpro.checkpoints.run_directory import find_run, suggest_runs
from virnucpro.checkpoints.whole_files import make_output_dir, replace_when_whole
from virnucpro.config import ExportConfig
from virnucpro.errors import CheckpointError, OutputExistsError, UsageError, count_who
from virnucpro.sequences.frame_store import open_frame_store
from virnucpro.sequences.records import ROW_ID
from virnucpro.workflows import CountListener, require_package

logger = logging.getLogger(__name__)

_IDS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class ExportSummary:
    """What was exported.

    Attributes:
        paths: The files.
        num_rows: Rows in all files.
        num_partial: Rows that were left out because one of their embeddings is missing.
    """

    paths: list[Path]
    num_rows: int
    num_partial: int


def export_embeddings(
    config: ExportConfig, on_progress: CountListener | None = None
) -> ExportSummary:
    """Write the rows that have all embeddings, in the order of the run.

    Raises:
        OutputExistsError: The output directory is not empty.
        CheckpointError: There is nothing to export, or it is damaged.
        OutputError: A file cannot be written.
    """
    directory = config.output_dir
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise OutputExistsError(f"{directory}: exists and is not empty; choose another (-o)")
    # Before the source is read, which checks all its parts.
    if config.to == "parquet":
        require_package("pyarrow", "parquet")
    source = _Source(config.run_dir)
    if len(source.readers) < len(ALPHABETS):
        (alphabet,) = source.readers
        found = f"{config.run_dir}: holds {alphabet} embeddings only"
        if config.to == "pt":
            raise CheckpointError(
                f"{found}, and the original's files hold both; choose another format (--to)"
            )
        logger.warning("%s; the output lacks all others", found)
    if source.num_partial:
        logger.warning(
            "%s: %s left out because an embedding is missing; the run may be unfinished, or its "
            "classifier reads only the DNA of the first open frame of a chunk",
            config.run_dir,
            count_who(source.num_partial, "row", "are"),
        )
    make_output_dir(directory)
    if config.to == "anndata":
        paths = [_write_anndata(source, directory / "embeddings.h5ad", on_progress)]
    elif config.to == "parquet":
        paths = [_write_parquet(source, directory / "embeddings.parquet", on_progress)]
    else:
        paths = list(_write_files(source, config, on_progress))
    return ExportSummary(paths, len(source.rows), source.num_partial)


class _Source:
    """The rows of a run, or of the output of `migrate`, that have all their embeddings.

    Attributes:
        readers: Readers of the embeddings, by alphabet.
        rows: int64 (N,), ascending.
        num_partial: Number of rows that have only one of their embeddings.
    """

    def __init__(self, directory: Path) -> None:
        if directory.is_file():
            raise UsageError(
                f"{directory}: is a file; wanted the directory of a run. What `virnucpro embed` "
                "writes is HDF5 with the datasets embeddings and ids, which h5py reads as it is"
            )
        self._run = find_run(directory)
        # A run has one store for both alphabets. `migrate` writes the two side by side, with ids.
        store_dir = self._run.frame_store_dir
        is_run = store_dir.is_dir()
        self._store = open_frame_store(store_dir, verify=True) if is_run else None
        places = {
            name: self._run.parts_dir(name) if is_run else directory / name for name in ALPHABETS
        }
        parts = {name: finished_parts(place) for name, place in places.items()}
        self._parts = {name: paths for name, paths in parts.items() if paths}
        if not self._parts:
            raise CheckpointError(
                f"{directory}: holds no finished embeddings; wanted the directory of a run, or "
                f"the output of `virnucpro migrate`{suggest_runs(directory)}"
            )
        # An export cannot compute damaged rows again, so that it checks all parts first.
        for path in itertools.chain(*self._parts.values()):
            check_part(path)
            if self._store is not None:
                self._store.check_part(path, read_identity(path))
        self.readers = {name: EmbeddingReader(paths) for name, paths in self._parts.items()}
        there = [self._find_rows(name) for name in self._parts]
        self.rows: Int64Array = functools.reduce(np.intersect1d, there)
        self.num_partial = len(np.unique(np.concatenate(there))) - len(self.rows)
        if not len(self.rows):
            raise CheckpointError(f"{directory}: no row has all its embeddings; finish the run")

    def _find_rows(self, alphabet: Alphabet) -> Int64Array:
        """Return the rows that have an embedding: int64, ascending."""
        embedded = finished_rows(self._parts[alphabet])
        if self._store is None:
            return embedded
        representatives = self._store.sequences(alphabet).representatives
        return np.flatnonzero(np.isin(representatives, embedded))

    @property
    def input_dim(self) -> int:
        """D."""
        return sum(reader.embedding_dim for reader in self.readers.values())

    @functools.cached_property
    def identities(self) -> dict[Alphabet, Identity]:
        """The identity of the embeddings; of the first file if several were migrated."""
        return {name: read_identity(paths[0]) for name, paths in self._parts.items()}

    def ids(self, rows: Int64Array) -> list[str]:
        """Return the ids of `rows`, which must be ascending."""
        if self._store is None:
            return next(iter(self.readers.values())).gather_ids(rows)
        return _pick_ids(self._store.frame_ids, rows)

    def embeddings(self, alphabet: Alphabet, rows: Int64Array) -> Float32Array:
        """Return the embeddings of `rows` in their order: float32 (n, E)."""
        if self._store is not None:
            # A copy of a sequence has no embedding of its own: its first equal has it.
            rows = self._store.sequences(alphabet).representatives[rows]
        return self.readers[alphabet].gather(rows)

    def features(self, rows: Int64Array) -> Float32Array:
        """Return all numbers of `rows` in their order: float32 (n, D)."""
        return np.concatenate([self.embeddings(name, rows) for name in self.readers], axis=1)

    def read_scores(self) -> Float32Array | None:
        """Return P(others) and P(virus) from the run's table, float32 (N, 2), if it has one."""
        path = self._run.prediction_results
        if self._store is None or not path.is_file():
            return None
        units, unit_of_row = self.rows, np.arange(len(self.rows))
        read_ids = self._store.frame_ids
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            next(file, None)
            # A frame with both embeddings has scores, so that the table has the same rows.
            table = (line.split("\t") for line in file)
            first = next(table, [""])
            lines = itertools.chain([first], table)
            # Frame by frame or chunk by chunk: the table has what the classifier scored.
            if first[0] != self.ids(self.rows[:1])[0]:
                chunks = self._store.find_chunks(self.rows)
                units, unit_of_row = np.unique(chunks, return_inverse=True)
                read_ids = self._store.chunk_ids
            try:
                blocks = [
                    _match_scores(_pick_ids(read_ids, units[block]), lines)
                    for block in split_rows(0, len(units))
                ]
                if next(file, None) is None:
                    return np.concatenate(blocks)[unit_of_row]
            except (ValueError, IndexError):
                pass
        # A warning only: the embeddings are what was asked for.
        logger.warning("%s: has other frames than the embeddings; left out", path)
        return None

    def blocks(self, on_progress: CountListener | None = None) -> Iterator[Int64Array]:
        """Yield the rows in blocks that fit in memory, and tell of each that is done."""
        for block in split_rows(0, len(self.rows)):
            yield self.rows[block]
            if on_progress is not None:
                on_progress("exporting", block.stop, len(self.rows))


def _pick_ids(read_ids: Callable[[int, int], list[str]], numbers: Int64Array) -> list[str]:
    """Return the ids of these numbers, which ascend.

    Args:
        read_ids: Returns the ids from one number up to another.
        numbers: The numbers.
    """
    names: list[str] = []
    # The rows of an unfinished run are far apart. A block keeps only its own names in memory.
    for block in np.split(numbers, np.flatnonzero(np.diff(numbers // _IDS_AT_ONCE)) + 1):
        ids = read_ids(int(block[0]), int(block[-1]) + 1)
        names += [ids[index] for index in (block - block[0]).tolist()]
    return names


def _match_scores(ids: list[str], lines: Iterator[list[str]]) -> Float32Array:
    """Return both scores of the lines that have these ids; another id is a ValueError."""
    scores = []
    for name, words in zip(ids, itertools.islice(lines, len(ids)), strict=True):
        if words[0] != name:
            raise ValueError(name)
        scores.append((float(words[2]), float(words[3])))
    return np.array(scores, np.float32)


def _write_files(
    source: _Source, config: ExportConfig, on_progress: CountListener | None
) -> Iterator[Path]:
    """Write files of `sequences_per_file` rows each, and yield their paths."""
    num_rows, step = len(source.rows), config.sequences_per_file
    for number, start in enumerate(range(0, num_rows, step), start=1):
        rows = source.rows[start : start + step]
        name = f"output_{number}_merged.pt" if config.to == "pt" else f"output_{number}.npz"
        path = config.output_dir / name
        with (
            replace_when_whole(path, 4 * len(rows) * source.input_dim) as temporary,
            temporary.open("wb") as file,
        ):
            ids = source.ids(rows)
            if config.to == "pt":
                import torch

                # The original's `merge_data` wrote these keys.
                torch.save({"ids": ids, "data": torch.from_numpy(source.features(rows))}, file)
            else:
                arrays = {name: source.embeddings(name, rows) for name in source.readers}
                # Without pickles, so that a reader needs to trust nothing.
                np.savez(file, ids=np.array(ids), allow_pickle=False, **arrays)
        yield path
        if on_progress is not None:
            on_progress("exporting", start + len(rows), num_rows)


def _write_anndata(source: _Source, path: Path, on_progress: CountListener | None) -> Path:
    dims = {
        source.identities[name].backend: reader.embedding_dim
        for name, reader in source.readers.items()
    }
    write_h5ad(
        path,
        (len(source.rows), source.input_dim),
        map(source.features, source.blocks(on_progress)),
        obs=_describe_rows(source),
        var={
            "feature": [f"{name}_{index}" for name, dim in dims.items() for index in range(dim)],
            "backend": [name for name, dim in dims.items() for _ in range(dim)],
        },
        uns={"virnucpro": {name: one.attributes() for name, one in source.identities.items()}},
    )
    return path


def _write_parquet(source: _Source, path: Path, on_progress: CountListener | None) -> Path:
    """Write a table with the columns of `_describe_rows` and one list of numbers for each model."""
    import pyarrow
    from pyarrow import parquet

    about = {name: json.dumps(one.attributes()) for name, one in source.identities.items()}
    num_bytes = 4 * len(source.rows) * source.input_dim
    with replace_when_whole(path, num_bytes) as temporary, ExitStack() as stack:
        # The writer needs the schema, which is that of the first block.
        writer = None
        described = _describe_rows(source)
        for rows, columns in zip(source.blocks(on_progress), described, strict=True):
            arrays = {
                # Parquet's texts are UTF-8, and an id may have other bytes.
                name: pyarrow.array(list(map(_replace_bytes, values)))
                if name in ("frame_id", "record", "chunk")
                else pyarrow.array(values)
                for name, values in columns.items()
            }
            for name, reader in source.readers.items():
                numbers = pyarrow.array(source.embeddings(name, rows).reshape(-1))
                arrays[name] = pyarrow.FixedSizeListArray.from_arrays(numbers, reader.embedding_dim)
            table = pyarrow.table(arrays).replace_schema_metadata(about)
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(temporary, table.schema))
            writer.write_table(table)
    return path


def _replace_bytes(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _describe_rows(source: _Source) -> Iterator[dict[str, Any]]:
    scores = source.read_scores()
    done = 0
    for rows in source.blocks():
        ids = source.ids(rows)
        # Migrated features may have ids of another form.
        matches = [ROW_ID.fullmatch(name) for name in ids]
        columns: dict[str, Any] = {
            "frame_id": ids,
            "record": [match["record"] if match else "" for match in matches],
            "chunk": [match["chunk"] if match else "" for match in matches],
            "row": rows,
        }
        if scores is not None:
            columns["score_others"], columns["score_virus"] = scores[done : done + len(rows)].T
        yield columns
        done += len(rows)

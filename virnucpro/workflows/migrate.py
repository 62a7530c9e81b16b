"""`migrate`: turns old features into parts with ids, and old classifiers into safetensors."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.checkpoints.identity import Identity
from virnucpro.checkpoints.parts import finished_parts, finished_rows, part_name
from virnucpro.checkpoints.whole_files import check_output_dir, make_output_dir, write_json
from virnucpro.config import MigrateConfig
from virnucpro.errors import ClassifierError, InputError, OutputExistsError, UsageError, name_few
from virnucpro.legacy.documents import UNKNOWN
from virnucpro.legacy.joining import (
    Choice,
    Conversion,
    DigestArray,
    FileReport,
    choose_rows,
    convert_file,
    excuse_joined,
    inspect_file,
    run_parallel,
)
from virnucpro.legacy.old_runs import FEATURE_SUFFIXES, feature_files, read_expected_length
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.legacy.verification import verify_rows
from virnucpro.reports.checked_json import check_fields, load_schema, make_validator, read_object
from virnucpro.runtime.locks import locked
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import check_state, read_classifier, save_classifier
from virnucpro.workflows import CountListener

logger = logging.getLogger(__name__)

REPORT_NAME = "migration.json"
REPORT_SCHEMA_VERSION = 1

_BACKENDS: dict[Alphabet, tuple[str, str]] = {
    "dna": ("dnabert-s", "mean over all tokens, CLS and SEP included"),
    "protein": ("esm2", "mean over residues, at most 1024, without BOS and EOS"),
}


def migrate_features(
    config: MigrateConfig, on_progress: CountListener | None = None
) -> dict[str, Any]:
    """Bring old features to the current format, and return the report on them.

    Sources are never changed. An interrupted migration continues where it stopped.

    Returns:
        The contents of migration.json; docs/migrating.md describes them.

    Raises:
        UsageError: The output directory lies within a source, or `verify` and the weights are not
            given together.
        OutputExistsError: The output directory is in use.
        CheckpointError: Embeddings that were computed again differ.
        OutputError: The output cannot be written.
    """
    has_weights = config.dna_weights is not None or config.protein_weights is not None
    if (config.verify is not None) != has_weights:
        raise UsageError(
            "--verify needs --dna-weights or --protein-weights, and these need --verify"
        )
    directory = config.output_path
    dims = EmbeddingDims(config.dna_dim, config.protein_dim)
    # Each file once, also if one source lies in another.
    paths = list(dict.fromkeys(path for source in config.sources for path in feature_files(source)))
    if not paths:
        raise UsageError(
            f"{name_few(config.sources)}: holds no file of features "
            f"({', '.join(sorted(FEATURE_SUFFIXES))}); wanted features, a directory of them, or a "
            "run of the original VirNucPro or of the fork"
        )
    earlier = None if directory is None else _read_earlier(directory, config.sources, paths)
    # A verification reads the sources, which are still the same files.
    if earlier is not None and earlier["status"] == "complete" and config.verify is None:
        logger.info("%s: is complete already", directory)
        return earlier
    if directory is not None:
        check_output_dir(directory)
    inspect = partial(inspect_file, dims=dims)
    reports = _collect(
        run_parallel(inspect, paths, config.jobs), "reading", len(paths), on_progress
    )
    choice = choose_rows(reports)
    excuse_joined(reports, choice)
    report = _describe(reports, choice, dims)
    if config.verify is not None:
        report["verified"] = verify_rows(config, reports, choice, dims)
    if directory is None or config.dry_run or not report["counts"]["ids"]:
        return report
    make_output_dir(directory)
    # Two migrations at once would write parts of the same names.
    with locked(directory / ".lock"):
        # The report comes first: it tells a later call which files the unfinished parts are from.
        write_json(directory / REPORT_NAME, report)
        tasks = _plan(directory, config.sources, reports, choice, dims)
        _collect(run_parallel(convert_file, tasks, config.jobs), "writing", len(tasks), on_progress)
        # Last, so that an interrupted migration is known by its report.
        report["status"] = "complete"
        write_json(directory / REPORT_NAME, report)
    return report


def migrate_classifier(
    source: Path, target: Path, metadata: ClassifierMetadata, *, dry_run: bool = False
) -> None:
    """Write the classifier in `source` as safetensors, with its metadata.

    With `dry_run`, check the classifier, but write nothing.

    Raises:
        ClassifierError: The classifier cannot be read, does not fit the metadata, or is in
            safetensors already.
        OutputExistsError: The target exists.
        OutputError: The target cannot be written.
    """
    if target.exists():
        raise OutputExistsError(f"{target}: exists already; choose another name (-o)")
    state, found, _ = read_classifier(source)
    if found is not None:
        raise ClassifierError(f"{source}: is in the current format already; nothing to migrate")
    # In a dry run, too: it must find what the real one would refuse.
    check_state(source, state, metadata)
    check_output_dir(target.parent)
    if not dry_run:
        make_output_dir(target.parent)
        save_classifier(target, state, metadata)


def _read_earlier(
    directory: Path, sources: Sequence[Path], paths: Sequence[Path]
) -> dict[str, Any] | None:
    """Return the report of an earlier migration of the same files; None if there is none.

    Raises:
        UsageError: The output directory lies within a source.
        OutputExistsError: The output directory is in use.
    """
    for source in sources:
        if directory.resolve().is_relative_to(source.resolve()):
            raise UsageError(
                f"{directory}: lies within {source}, which must not change; choose another (-o)"
            )
    if not directory.exists() or not any(directory.iterdir()):
        return None
    path = directory / REPORT_NAME
    try:
        earlier = read_object(path, REPORT_SCHEMA_VERSION, InputError)
        check_fields(path, earlier, make_validator(load_schema(REPORT_NAME)), InputError, "")
    # Whatever this file is, it is no report on these files, and is left alone.
    except InputError:
        earlier = {"files": []}
    files = [
        {name: entry[name] for name in ("path", "num_bytes", "mtime_ns")}
        for entry in earlier["files"]
    ]
    if files != [_describe_path(path) for path in paths]:
        raise OutputExistsError(
            f"{directory}: is not empty, and does not hold an earlier migration of the same files; "
            "choose another directory (-o)"
        )
    return earlier


def _describe_path(path: Path) -> dict[str, Any]:
    status = path.stat()
    # Size and time stand for the contents: a digest would read every file once more.
    return {"path": str(path), "num_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _collect(
    results: Iterable[Any], name: str, num_files: int, on_progress: CountListener | None
) -> list[Any]:
    collected = []
    for result in results:
        collected.append(result)
        if on_progress is not None:
            on_progress(name, len(collected), num_files)
    return collected


def _number_ids(
    reports: Sequence[FileReport], choice: Choice
) -> tuple[DigestArray, Int64Array, DigestArray]:
    """Return the taken ids sorted, the row of each, and the ids in the order of their rows.

    An id's row is its position among all ids, DNA first. Both alphabets share the rows.
    """
    ids = np.concatenate([choice.ids(reports, alphabet) for alphabet in ALPHABETS])
    unique, first = np.unique(ids, return_index=True)
    order = np.argsort(first)
    rows = np.empty(len(unique), np.int64)
    rows[order] = np.arange(len(unique))
    return unique, rows, unique[order]


def _plan(
    directory: Path,
    sources: Sequence[Path],
    reports: Sequence[FileReport],
    choice: Choice,
    dims: EmbeddingDims,
) -> list[Conversion]:
    """Return the parts to write from each file, without the files that are written already."""
    # Rows and ranks follow the order of the sources. They are the same when the user repeats the
    # command after an interruption, so that finished parts keep their meaning.
    unique, rows_of_ids, ordered = _number_ids(reports, choice)
    digest = hashlib.sha256(ordered.tobytes()).hexdigest()
    # Sources with different chunk lengths have no common one: 0 means unknown.
    lengths = {read_expected_length(source) for source in sources}
    length_bp = lengths.pop() or 0 if len(lengths) == 1 else 0
    # Listed once: a migration of a thousand files writes thousands of parts.
    parts = {alphabet: finished_parts(directory / alphabet) for alphabet in ALPHABETS}
    tasks = []
    for rank, (report, taken) in enumerate(zip(reports, choice.taken, strict=True)):
        places = np.searchsorted(unique, report.ids).clip(max=max(0, len(unique) - 1))
        rows = {name: np.where(mask, rows_of_ids[places], -1) for name, mask in taken.items()}
        task = Conversion(
            path=report.path,
            dims=dims,
            rank=rank,
            rows=rows,
            directories={name: directory / name for name in rows},
            identities={
                name: _make_identity(report, name, dims, digest, length_bp) for name in rows
            },
            first_numbers=dict.fromkeys(rows, 0),
            # There is no frame store here, so only the ids tell which frames the rows are.
            with_ids=True,
        )
        if not all(_is_written(task, name, parts[name]) for name in rows):
            tasks.append(task)
    return tasks


def _is_written(task: Conversion, alphabet: Alphabet, parts: Sequence[Path]) -> bool:
    # The rank stands for the file, so the names of its parts begin with it.
    prefix = part_name(task.rank, 0)[: len("part-00000-")]
    written = finished_rows([part for part in parts if part.name.startswith(prefix)])
    return len(written) == np.count_nonzero(task.rows[alphabet] >= 0)


def _make_identity(
    report: FileReport, alphabet: Alphabet, dims: EmbeddingDims, digest: str, length_bp: int
) -> Identity:
    assert report.generation is not None
    backend, pooling = _BACKENDS[alphabet]
    return Identity(
        # No run has such an input or such weights, so no run takes these parts for its own unasked.
        input_digest=f"ids sha256:{digest}",
        backend=backend,
        backend_version=UNKNOWN,
        weights_identity=f"{UNKNOWN}: {report.generation.name}",
        precision=report.precision,
        chunk_length_bp=length_bp,
        pooling=pooling,
        embedding_dim=getattr(dims, alphabet),
    )


def _describe(reports: Sequence[FileReport], choice: Choice, dims: EmbeddingDims) -> dict[str, Any]:
    dna, protein = (choice.ids(reports, alphabet) for alphabet in ALPHABETS)
    return {
        "schema_version": REPORT_SCHEMA_VERSION,
        "status": "in progress",
        "counts": {
            "ids": len(np.union1d(dna, protein)),
            "dna": len(dna),
            "protein": len(protein),
            "dna without protein": len(np.setdiff1d(dna, protein)),
            "protein without dna": len(np.setdiff1d(protein, dna)),
            "repeated": choice.num_repeated,
            "ambiguous": choice.num_ambiguous,
            "files refused": sum(report.error is not None for report in reports),
        },
        "files": [
            _describe_file(report, taken, dims)
            for report, taken in zip(reports, choice.taken, strict=True)
        ],
    }


def _describe_file(
    report: FileReport, taken: Mapping[Alphabet, Any], dims: EmbeddingDims
) -> dict[str, Any]:
    generation = report.generation
    return {
        **_describe_path(report.path),
        "version": generation.version if generation else None,
        "generation": generation.name if generation else None,
        "kind": report.kind,
        "rows": len(report.ids),
        "dims": {alphabet: getattr(dims, alphabet) for alphabet in report.values},
        "precision": report.precision,
        "taken": {alphabet: int(mask.sum()) for alphabet, mask in taken.items()},
        "notes": list(generation.notes) if generation else [],
        "error": report.error,
    }

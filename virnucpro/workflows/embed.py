"""The whole story of `embed`, from a sequence file to vectors: one backend and no classifier."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.embeddings_file import write_embeddings
from virnucpro.checkpoints.parts import Identity, finished_parts, read_identity
from virnucpro.checkpoints.run_directory import METRICS_NAME
from virnucpro.config import STDIN, EmbedConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.loader import prepare_workers
from virnucpro.embedding.loop import EmbeddingJob
from virnucpro.embedding.session import (
    Clock,
    Model,
    check_shared_directory,
    ending_together,
    locked,
    open_model,
    open_monitor,
    run_job,
)
from virnucpro.errors import CheckpointError, IncompleteError, OutputExistsError, UsageError
from virnucpro.runtime.devices import choose_precision, make_accelerator
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.sequences.frame_store import RecordStore, build_record_store, open_record_store

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 16_384


def embed(config: EmbedConfig, on_progress: ProgressListener | None = None) -> Path:
    """Embed every record of a sequence file with one backend and write one HDF5 file.

    The file is a part as FORMAT.md describes it, with the records' ids; its rows keep the input's
    order. Empty records have no embedding and are left out. A directory `{output}.parts` holds what
    is finished until then.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process.

    Returns:
        The path of the file.

    Raises:
        VirnucproError: Whatever goes wrong that a user can mend; see `virnucpro.errors`.
    """
    clock = Clock()
    work_dir = config.work_dir
    accelerator = make_accelerator(config)
    with (
        ending_together(accelerator),
        _claim_output(config, work_dir, accelerator),
        open_monitor(accelerator, work_dir / METRICS_NAME) as monitor,
    ):
        with clock.time("open model"):
            prepare_workers(config, accelerator.device)
            precision = choose_precision(config.precision, accelerator)
            model = open_model(accelerator, config.backend, config.weights)
        with clock.time("read records"):
            store_dir = work_dir / "records"
            if accelerator.is_main_process:
                build_record_store([config.input], store_dir, alphabet=model.alphabet)
            accelerator.wait_for_everyone()
            store = open_record_store(store_dir)
        job = _make_record_job(config, store, model, precision, work_dir)
        if config.resume and _is_finished(config.output_path, job.identity):
            logger.info("%s: is finished already", config.output_path)
        else:
            with clock.time(job.name):
                summaries = run_job(job, config, accelerator, on_progress, monitor=monitor)
            failed = [row for summary in summaries for row in summary.failed_rows]
            if accelerator.is_main_process:
                _join_parts(config.output_path, store, job, failed)
            if failed:
                raise IncompleteError(
                    f"{config.output_path}: written without {len(failed)} sequences that do not "
                    "fit the memory of a device; use a device with more, and --force"
                )
        accelerator.wait_for_everyone()
    return config.output_path


def _make_record_job(
    config: EmbedConfig, store: RecordStore, model: Model, precision: str, work_dir: Path
) -> EmbeddingJob:
    source = store.sequences()
    rows = unique_rows(source)
    return EmbeddingJob(
        name=f"{config.backend} embeddings",
        backend=model.loaded.backend,
        weights=model.weights,
        source=source,
        rows=rows[store.record_lengths[rows] > 0],
        parts_dir=work_dir,
        identity=model.make_identity(store.input_digest, precision, chunk_length_bp=0),
        batch_tokens=config.batch_tokens,
    )


def _is_finished(path: Path, identity: Identity) -> bool:
    try:
        return read_identity(path) == identity
    except CheckpointError:
        return False


def _join_parts(path: Path, store: RecordStore, job: EmbeddingJob, failed: list[int]) -> None:
    """Write the embeddings of all records that have one, in input order."""
    representatives = np.asarray(job.source.representatives)
    is_empty = store.record_lengths == 0
    rows = np.flatnonzero(~is_empty & ~np.isin(representatives, failed))
    if is_empty.any():
        logger.warning(
            "%d of %d records are empty and have no embedding",
            is_empty.sum(),
            store.num_records,
        )
    reader = EmbeddingReader(finished_parts(job.parts_dir))
    blocks = (
        reader.gather(representatives[rows[start : start + _ROWS_AT_ONCE]])
        for start in range(0, len(rows), _ROWS_AT_ONCE)
    )
    ids = [store.record_id(row) for row in rows.tolist()]
    write_embeddings(path, rows, ids, blocks, job.identity)


@contextmanager
def _claim_output(config: EmbedConfig, work_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the working directory beside the output, and remove it once the output is whole."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        check_shared_directory(accelerator, work_dir)
        yield
        return
    if config.input != STDIN and config.output_path.resolve() == Path(config.input).resolve():
        raise UsageError(f"{config.output_path}: is the input; choose another output (-o)")
    begun = config.output_path.exists() or (work_dir.is_dir() and _is_begun(work_dir))
    if begun and not (config.force or config.resume):
        raise OutputExistsError(
            f"{config.output_path}: exists already, at least in part; continue with --resume, "
            "overwrite it with --force, or choose another output (-o)"
        )
    work_dir.mkdir(parents=True, exist_ok=True)
    with locked(work_dir / ".lock"):
        if not config.resume:
            _clear(work_dir)
        accelerator.wait_for_everyone()
        check_shared_directory(accelerator, work_dir)
        yield
    shutil.rmtree(work_dir)


def _is_begun(work_dir: Path) -> bool:
    return any(path.name != METRICS_NAME for path in _leftovers(work_dir))


def _leftovers(work_dir: Path) -> Iterator[Path]:
    """Yield what an earlier run left, but not the lock that this one may hold."""
    return (path for path in work_dir.iterdir() if path.name != ".lock")


def _clear(work_dir: Path) -> None:
    for path in list(_leftovers(work_dir)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

"""The story of `virnucpro embed`, from sequences to vectors: one model and no classifier."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import split_rows
from virnucpro.checkpoints.embeddings_file import write_embeddings
from virnucpro.checkpoints.parts import Identity, read_identity, refuse_other_runs
from virnucpro.checkpoints.run_directory import EmbedDirectory
from virnucpro.config import EmbedConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.models import open_model
from virnucpro.embedding.passes import Pass, run_pass
from virnucpro.embedding.workers import prepare_workers
from virnucpro.errors import CheckpointError, IncompleteError
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import open_run
from virnucpro.sequences.frame_store import RecordStore, open_record_store, prepare_record_store

logger = logging.getLogger(__name__)


def embed(config: EmbedConfig, on_progress: ProgressListener | None = None) -> Path:
    """Embed every record of a sequence file with one backend, and write one HDF5 file.

    The file is a part as FORMAT.md describes it, with the records' ids. Its rows keep the input's
    order. Empty records have no embedding and are left out. The directory `{output}.parts` holds
    what is finished until the file is whole.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process.

    Returns:
        The path of the file.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    directory = EmbedDirectory(config.output_path)
    with open_run(config, directory, [config.input], on_progress) as run:
        with run.stage("open model"):
            prepare_workers(config, run.device)
            model = open_model(config.backend, config.weights, run)
        with run.stage("read records"):
            run.once(
                lambda: prepare_record_store(
                    [config.input],
                    directory.records_dir,
                    lambda store: refuse_other_runs(
                        directory.path, model.make_identity(store.input_digest, run.precision, 0)
                    ),
                    alphabet=model.alphabet,
                )
            )
            store = open_record_store(directory.records_dir)
        source = store.sequences()
        rows = unique_rows(source)
        job = Job(
            name=f"{config.backend} embeddings",
            model=model,
            source=source,
            rows=rows[store.record_lengths[rows] > 0],
            parts_dir=directory.path,
            input_digest=store.input_digest,
            precision=run.precision,
            attention=config.attention,
            batch_tokens=config.batch_tokens,
        )
        if config.resume and _is_finished(config.output_path, job.identity):
            logger.info("%s: is finished already", config.output_path)
        else:
            done = run_pass(run, job)
            run.once(lambda: _join_parts(config.output_path, store, done))
            if done.failed_rows:
                raise IncompleteError(
                    f"{config.output_path}: written without {len(done.failed_rows)} sequences that "
                    "exceed the memory of a device; use a device with more memory, and --force"
                )
        run.wait()
    if run.is_main:
        shutil.rmtree(directory.path)
    return config.output_path


def _is_finished(path: Path, identity: Identity) -> bool:
    try:
        return read_identity(path) == identity
    except CheckpointError:
        return False


def _join_parts(path: Path, store: RecordStore, done: Pass) -> None:
    """Write the embeddings of all records that have one, in input order."""
    is_empty = store.record_lengths == 0
    if is_empty.any():
        logger.warning(
            "%d of %d records are empty and have no embedding",
            is_empty.sum(),
            store.num_records,
        )
    rows = np.flatnonzero(~is_empty)
    rows = rows[done.has(rows)]
    blocks = (done.gather(rows[block]) for block in split_rows(0, len(rows)))
    ids = [store.record_id(row) for row in rows.tolist()]
    write_embeddings(path, rows, ids, blocks, done.job.identity)

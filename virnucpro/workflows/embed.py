"""The story of `virnucpro embed`, from sequences to vectors: one model and no classifier."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array, number_spans
from virnucpro.backend.registry import load_backend
from virnucpro.checkpoints.embeddings_file import write_embeddings
from virnucpro.checkpoints.finished_work import is_whole, refuse_other_run, refuse_other_runs
from virnucpro.checkpoints.parts import mark_done, unmark
from virnucpro.checkpoints.run_directory import EmbedDirectory
from virnucpro.config import EmbedConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.jobs import Job
from virnucpro.embedding.models import Model, open_model
from virnucpro.embedding.passes import Pass, run_pass
from virnucpro.embedding.workers import prepare_workers
from virnucpro.errors import ClassifierError, IncompleteError, InputError, brief, count, count_who
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.frame_store import RecordStore, open_record_store, prepare_record_store
from virnucpro.sequences.windows import WindowSource

# A model that reads sequences of any length takes time by the square of it. This takes seconds on a
# GPU and an hour on a CPU.
_MAX_WHOLE_LETTERS = 1_000_000
_WINDOW_LETTERS = 10_000  # what the published tokenizer of DNABERT-S cuts to: 2,000 tokens

logger = logging.getLogger(__name__)


def embed(config: EmbedConfig, on_progress: ProgressListener | None = None) -> Path:
    """Embed every record of a sequence file with one backend, and write one HDF5 file.

    The file is a part as FORMAT.md describes it, with the records' ids. Its rows keep the input's
    order. Empty records have no embedding and are left out. The directory `{output}.parts` holds
    what is finished until the file is whole.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process. Its argument has the attributes
            `name` (of the pass), `num_rows`, `total_rows` and more.

    Returns:
        The path of the file.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    EmbedConfig.require(config)
    directory = EmbedDirectory(config.output_path)
    with open_run(config, directory, [config.input], on_progress) as run:
        with run.stage("open model"):
            model = _open_model(run, config)
        with run.stage("read records"):
            store = _read_records(run, config, directory, model)
            _check_lengths(config, store, model)
        job = _make_job(run, config, directory, store, model)
        # Asked in one process and shared: another process could see the file in another state.
        is_finished = (
            config.resume and run.is_main and is_whole(directory.output_path, job.identity)
        )
        if run.share(is_finished):
            logger.info("%s: is finished already", config.output_path)
        else:
            done = run_pass(run, job)
            run.once(lambda: _join_parts(config.output_path, store, done))
            if done.failed_rows:
                left_out = count(len(done.failed_rows), "sequence")
                raise IncompleteError(
                    f"{config.output_path}: written without {left_out}, because the memory of a "
                    "device is too small; use a device with more memory"
                )
        # The parts go only when no process reads them any more.
        run.wait()
    if run.is_main:
        # The output holds everything now, and its mark says so.
        shutil.rmtree(directory.path)
    return config.output_path


def _open_model(run: Run, config: EmbedConfig) -> Model:
    """Return the model, with what the classifier of the settings changes in its weights.

    Raises:
        ClassifierError: The classifier cannot be read, was trained on another model, or changes
            nothing in this one.
        VirnucproError: The input or the weights cannot be used.
    """
    alphabet = load_backend(config.backend).backend.info.alphabet
    classifier = None if config.classifier is None else load_classifier(config.classifier)
    changes = None if classifier is None else classifier.changes.get(alphabet)
    if classifier is not None and not changes:
        raise ClassifierError(
            f"{config.classifier}: changes no {alphabet} model, and {config.backend} is one; leave "
            "out --classifier, or give a classifier that was fine-tuned together with the model"
        )
    run.once(lambda: check_beginnings([config.input], alphabet))
    # The workers import their modules while this process opens the weights.
    prepare_workers(config, run.device)
    model = open_model(config.backend, config.weights, run, changes)
    if classifier is not None:
        classifier.check_weights(alphabet, model.name, model.weights.identity)
    return model


def _read_records(
    run: Run, config: EmbedConfig, directory: EmbedDirectory, model: Model
) -> RecordStore:
    """Return the store of the records; the main process writes it, or finds it from before."""
    run.once(
        lambda: prepare_record_store(
            [config.input],
            directory.records_dir,
            # Before anything in the directory changes: a refused --resume must leave it as it was.
            lambda store: _refuse_other_runs(
                config, directory, _make_job(run, config, directory, store, model)
            ),
            alphabet=model.alphabet,
            force_alphabet=config.force_alphabet,
        )
    )
    return open_record_store(directory.records_dir)


def _make_job(
    run: Run, config: EmbedConfig, directory: EmbedDirectory, store: RecordStore, model: Model
) -> Job:
    # Without windows, the model itself cuts what is too long.
    size = (model.backend.info.max_letters or _WINDOW_LETTERS) if config.long == "windows" else None
    source = WindowSource(store, size)
    rows = unique_rows(source)
    return Job(
        name=f"{config.backend} embeddings",
        model=model,
        source=source,
        # An empty sequence has no token to average, so no model is asked.
        rows=rows[source.lengths[rows] > 0],
        parts_dir=directory.path,
        # Rows of windows are positions in another list than rows of records.
        input_digest=store.input_digest if size is None else f"{store.input_digest} in windows",
        precision=run.precision,
        attention=config.attention,
        batch_tokens=config.batch_tokens,
    )


def _check_lengths(config: EmbedConfig, store: RecordStore, model: Model) -> None:
    """Refuse a sequence that would take days, before it is tokenized.

    Raises:
        InputError: A sequence is too long to be read as a whole.
    """
    if config.long == "windows" or model.backend.info.max_letters is not None:
        return
    is_too_long = store.record_lengths > _MAX_WHOLE_LETTERS
    if is_too_long.any():
        row = int(is_too_long.argmax())
        raise InputError(
            f"{config.input}: record {brief(store.record_id(row))} has "
            f"{store.record_lengths[row]:,} letters, and {model.name} would read it as a whole; "
            "the time grows with the square of the length, and the limit is "
            f"{_MAX_WHOLE_LETTERS:,} letters; give --long windows"
        )


def _refuse_other_runs(config: EmbedConfig, directory: EmbedDirectory, job: Job) -> None:
    """Make sure that the parts, and an output that is to be finished, are of this job."""
    refuse_other_runs(directory.path, job.identity)
    if config.resume and directory.output_path.exists():
        refuse_other_run(directory.output_path, job.identity)


def _join_parts(path: Path, store: RecordStore, done: Pass) -> None:
    """Write the embeddings of all records that have one, in input order."""
    is_empty = store.record_lengths == 0
    if is_empty.any():
        logger.warning(
            "empty records, which get no embedding: %d of %d", is_empty.sum(), store.num_records
        )
    source = done.job.source
    assert isinstance(source, WindowSource)
    has_window = done.has(np.arange(len(source)))
    # One window that failed makes the mean of a record wrong, so the record is left out.
    has_all = np.logical_and.reduceat(has_window, source.first_windows[:-1])
    rows = np.flatnonzero(~is_empty & has_all)
    lengths = store.record_lengths[rows]
    limit = done.job.model.backend.info.max_letters
    if limit is None or source.size is not None:
        embedded_lengths = lengths
    else:
        embedded_lengths = np.minimum(lengths, limit)
    num_cut = np.count_nonzero(embedded_lengths < lengths)
    if num_cut:
        logger.warning(
            "%s longer than the %d letters that %s reads: only the beginning is embedded, and "
            "embedded_lengths in the file says how much; give --long windows to embed all of it",
            count_who(int(num_cut), "sequence", "are", of=len(rows)),
            limit,
            done.job.model.name,
        )
    blocks = (_average_windows(done, source, block) for block in source.split_records(rows))
    ids = [store.record_id(row) for row in rows.tolist()]
    columns = {"lengths": lengths, "embedded_lengths": embedded_lengths}
    # First: from here on, the file at this path is not what its mark says.
    unmark(path)
    write_embeddings(path, rows, ids, blocks, done.job.identity, columns)
    # Without a mark, a resumed run tries the failed ones again.
    if not done.failed_rows:
        mark_done(path, len(rows))


def _average_windows(done: Pass, source: WindowSource, records: Int64Array) -> Float32Array:
    """Return the mean of each record's windows, weighted by their lengths: float32 (n, E)."""
    counts = source.first_windows[records + 1] - source.first_windows[records]
    if (counts == 1).all():
        return done.gather(source.first_windows[records])
    starts = np.cumsum(counts) - counts
    windows = number_spans(source.first_windows[records], counts)
    weights_N1 = source.lengths[windows][:, None].astype(np.float64)
    # In float64, in which the mean of one window is exactly this window.
    sums_NE = np.add.reduceat(done.gather(windows) * weights_N1, starts)
    return (sums_NE / np.add.reduceat(weights_N1, starts)).astype(np.float32)

"""The story of `virnucpro predict`, from sequences to tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import FrameRule, PredictConfig
from virnucpro.embedding.estimates import warn_of_slow_cpu
from virnucpro.embedding.jobs import make_frame_job, refuse_other_parts, warn_of_cuts
from virnucpro.embedding.models import Model, open_frame_models
from virnucpro.embedding.passes import Pass, run_pass
from virnucpro.errors import UsageError, count
from virnucpro.legacy.adoption import adopt_legacy_run
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.reports.record_results import PredictResult, note_short_records
from virnucpro.reports.run_results import write_shard_summary, write_summary, write_tables
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.frame_scores import check_models, open_classifier, score_passes
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.frame_store import FrameStore, open_frame_store, prepare_frame_store
from virnucpro.sequences.records import NAME_OF_ROW, NAMES_OF_ROWS

logger = logging.getLogger(__name__)


def predict(config: PredictConfig, on_progress: ProgressListener | None = None) -> PredictResult:
    """Call every input record viral or not, and write the tables.

    In a launch, every process calls this, and the main process writes.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process.

    Returns:
        Counts and paths, the same in every process.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    if config.shard is not None:
        raise UsageError(
            f"shard {config.shard}: calls need all shares; use predict_shard and merge"
        )
    directory = _prepare(config)
    with open_run(config, directory, config.inputs, on_progress) as run:
        classifier, store, passes = _embed_frames(run, directory, config)
        result = None
        if run.is_main:
            result = write_results(run, directory, config, store, passes, classifier)
        return run.share(result)


def predict_shard(config: PredictConfig, on_progress: ProgressListener | None = None) -> None:
    """Embed the share of the batches that `config.shard` names; `merge` makes the calls.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    directory = _prepare(config)
    with open_run(config, directory, config.inputs, on_progress) as run:
        classifier, store, passes = _embed_frames(run, directory, config)
        if run.is_main:
            write_shard_summary(run, directory, config, store, passes, classifier)


def write_results(
    run: Run,
    directory: RunDirectory,
    config: PredictConfig,
    store: FrameStore,
    passes: Sequence[Pass],
    classifier: Classifier,
) -> PredictResult:
    """Score what was embedded, write all tables and the page, and return counts and paths.

    Raises:
        VirnucproError: An embedding is missing, or a file cannot be written.
    """
    with run.stage("scores and tables"):
        scores = score_passes(store, passes, classifier)
        calls = write_tables(directory, config, store, scores, classifier)
    result = write_summary(run, directory, config, store, passes, classifier, calls)
    if config.report:
        write_run_page(directory, directory.report_html)
    return result


def _prepare(config: PredictConfig) -> RunDirectory:
    directory = RunDirectory(config.resolved_output_dir, config.stem)
    if config.checkpoint_dir is not None:
        directory.place_checkpoints(config.checkpoint_dir)
    return directory


def _embed_frames(
    run: Run, directory: RunDirectory, config: PredictConfig
) -> tuple[Classifier, FrameStore, list[Pass]]:
    """Open the models, find the frames, and embed them with both models."""
    with run.stage("open models"):
        classifier = open_classifier(config)
        run.once(lambda: check_beginnings(config.inputs, "dna", allow_empty=config.allow_empty))
        models = open_frame_models(run, config)
        check_models(config, classifier, models)
        rule = classifier.rule
    with run.stage(f"find {NAMES_OF_ROWS[rule.kind]}"):
        store = _find_frames(run, directory, config, models, rule)
    jobs = [
        make_frame_job(
            config,
            directory,
            store,
            model,
            run.precision,
            trust_parts=config.skip_checkpoint_validation,
            shard=config.shard_numbers,
        )
        for model in models
    ]
    warn_of_slow_cpu(run, jobs)
    if config.resume and run.is_main:
        with run.stage("take over an older run"):
            identities = {job.model.alphabet: job.identity for job in jobs}
            adopt_legacy_run(directory, store, identities)
    return classifier, store, [run_pass(run, job) for job in jobs]


def _find_frames(
    run: Run,
    directory: RunDirectory,
    config: PredictConfig,
    models: Sequence[Model],
    rule: FrameRule,
) -> FrameStore:
    run.once(
        lambda: prepare_frame_store(
            config.inputs,
            directory.frame_store_dir,
            lambda store: refuse_other_parts(directory, store, models, run.precision),
            chunk_length_bp=config.chunk_length_bp,
            min_length_bp=config.min_length_bp,
            rule=rule,
            paired=config.paired,
            allow_empty=config.allow_empty,
        )
    )
    store = open_frame_store(directory.frame_store_dir)
    note_short_records(store)
    warn_of_cuts(store, models)
    num_frames = store.num_frames
    num_dna, num_proteins = store.num_distinct("dna"), store.num_distinct("protein")
    if min(num_dna, num_proteins) < num_frames:
        logger.info(
            "identical sequences are embedded once: %s DNA and %s proteins of %s",
            f"{num_dna:,}",
            f"{num_proteins:,}",
            count(num_frames, NAME_OF_ROW[rule.kind]),
        )
    return store

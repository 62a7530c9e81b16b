"""The story of `virnucpro predict`, from sequences to tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import FrameRule, PredictConfig
from virnucpro.embedding.jobs import make_frame_job, refuse_other_parts, warn_of_cuts
from virnucpro.embedding.models import Model, open_frame_models
from virnucpro.embedding.passes import run_pass
from virnucpro.legacy.adoption import adopt_legacy_run
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.reports.record_results import PredictResult, note_short_records
from virnucpro.reports.run_results import write_summary, write_tables
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.frame_scores import check_models, open_classifier, score_passes
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.frame_store import FrameStore, open_frame_store, prepare_frame_store
from virnucpro.sequences.records import NAMES_OF_ROWS

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
    directory = RunDirectory(config.resolved_output_dir, config.stem)
    with open_run(config, directory, config.inputs, on_progress) as run:
        with run.stage("open models"):
            classifier = open_classifier(config)
            run.once(lambda: check_beginnings(config.inputs, "dna"))
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
            )
            for model in models
        ]
        if config.resume and run.is_main:
            with run.stage("take over an older run"):
                identities = {job.model.alphabet: job.identity for job in jobs}
                adopt_legacy_run(directory, store, identities)
        passes = [run_pass(run, job) for job in jobs]
        result = None
        if run.is_main:
            with run.stage("scores and tables"):
                scores = score_passes(store, passes, classifier)
                calls = write_tables(directory, config, store, scores, classifier)
            result = write_summary(run, directory, config, store, passes, classifier, calls)
            if config.report:
                write_run_page(directory, directory.report_html)
        return run.share(result)


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
        )
    )
    store = open_frame_store(directory.frame_store_dir)
    note_short_records(store)
    warn_of_cuts(store, models)
    num_frames = store.num_frames
    num_dna, num_proteins = store.num_distinct("dna"), store.num_distinct("protein")
    logger.info(
        "identical sequences are embedded once: %s DNA and %s proteins of %s %s, which "
        "saves %.1f %% and %.1f %%",
        f"{num_dna:,}",
        f"{num_proteins:,}",
        f"{num_frames:,}",
        NAMES_OF_ROWS[rule.kind],
        100 * (num_frames - num_dna) / max(1, num_frames),
        100 * (num_frames - num_proteins) / max(1, num_frames),
    )
    return store

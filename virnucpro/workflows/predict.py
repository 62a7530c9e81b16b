"""The story of `virnucpro predict`, from sequences to tables."""

from __future__ import annotations

from dataclasses import replace

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import PredictConfig
from virnucpro.embedding.estimates import warn_of_slow_cpu
from virnucpro.embedding.jobs import make_frame_jobs
from virnucpro.embedding.models import open_frame_models
from virnucpro.embedding.passes import run_passes
from virnucpro.errors import UsageError
from virnucpro.legacy.adoption import adopt_legacy_run, find_old_features
from virnucpro.reports.pages.run_page import write_run_page
from virnucpro.reports.record_results import PredictResult, note_short_records, replaced_results
from virnucpro.reports.run_results import write_shard_summary, write_summary, write_tables
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.frame_scores import (
    Embedded,
    check_models,
    leave_out,
    open_classifier,
    score_passes,
)
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.records import NAMES_OF_ROWS
from virnucpro.workflows.finding import find_frames
from virnucpro.workflows.screening import open_screen_models, screen_records


def predict(config: PredictConfig, on_progress: ProgressListener | None = None) -> PredictResult:
    """Call every input record viral or not, and write the tables.

    In a launch, every process calls this, and the main process writes.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process. Its argument has the attributes
            `name` (of the pass), `num_rows`, `total_rows` and more.

    Returns:
        Counts and paths, the same in every process.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    PredictConfig.require(config)
    # Calls by a false discovery rate depend on all records, so a share cannot make them.
    if config.shard is not None:
        raise UsageError(
            f"shard {config.shard}: calls need all shares; use predict_shard and merge"
        )
    directory = _prepare(config)
    with open_run(config, directory, config.inputs, on_progress) as run:
        embedded = _embed_frames(run, directory, config)
        result = None
        if run.is_main:
            # One process writes, because two would write the same files.
            result = write_results(run, directory, config, embedded)
        return run.share(result)


def predict_shard(config: PredictConfig, on_progress: ProgressListener | None = None) -> None:
    """Embed the share of the batches that `config.shard` names; `merge` makes the calls.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    PredictConfig.require(config)
    directory = _prepare(config)
    with open_run(config, directory, config.inputs, on_progress) as run:
        embedded = _embed_frames(run, directory, config)
        if run.is_main:
            write_shard_summary(run, directory, config, embedded)


def write_results(
    run: Run, directory: RunDirectory, config: PredictConfig, embedded: Embedded
) -> PredictResult:
    """Score what was embedded, write all tables and the page, and return counts and paths.

    Raises:
        VirnucproError: An embedding is missing, or a file cannot be written.
    """
    with replaced_results(directory):
        with run.stage("scores and tables"):
            scores = score_passes(embedded.store, embedded.passes, embedded.classifier)
            if embedded.screened is not None:
                scores = leave_out(scores, embedded.store, embedded.screened.is_cellular)
            calls = write_tables(directory, config, embedded, scores)
        result = write_summary(run, directory, config, embedded, calls)
    # Last, because the page is made from run.json and the tables.
    if config.report:
        write_run_page(directory, directory.report_html)
    return result


def _prepare(config: PredictConfig) -> RunDirectory:
    directory = RunDirectory(config.resolved_output_dir, config.stem, config.prefix)
    directory.place_checkpoints(config.checkpoint_dir)
    return directory


def _embed_frames(run: Run, directory: RunDirectory, config: PredictConfig) -> Embedded:
    """Open the models, find the frames, and embed them with both models."""
    # What is cheap comes first: a mistake shows before gigabytes are read.
    with run.stage("open models"):
        classifier = open_classifier(config)
        run.once(lambda: check_beginnings(config.inputs, "dna", allow_empty=config.allow_empty))
        models = open_frame_models(run, config, classifier.changes)
        check_models(config, classifier, models)
        rule = classifier.rule
    screen = open_screen_models(run, config, classifier) if config.screen else None
    if config.screen is None and not config.resume:
        # A run that resumes may find this pass finished, and then needs no weights.
        models[0].load_ahead(run.device, run.precision, config.attention)
    with run.stage(f"find {NAMES_OF_ROWS[rule.kind]}"):
        store = find_frames(run, directory, config, models, rule, run.precision)
    note_short_records(store)
    # After the store of the run: a directory of another input is refused before any work.
    screened = screen_records(run, directory, screen, store) if screen else None
    rows = None if screened is None else screened.rows_to_judge(store)
    jobs = [
        replace(job, trust_parts=config.skip_checkpoint_validation, shard=config.shard_numbers)
        for job in make_frame_jobs(
            *(config, directory, store, models, run.precision, rows),
            reads_chunks=classifier.reads_chunks,
        )
    ]
    warn_of_slow_cpu(run, jobs)
    # The models of older programs were never fine-tuned, so their features are of no use then.
    may_adopt = config.resume and run.is_main and not classifier.changes
    if may_adopt and find_old_features(directory):
        with run.stage("take over an older run"):
            # Before the first pass looks for finished parts, so that it counts what was taken over.
            identities = {job.model.alphabet: job.identity for job in jobs}
            wanted = {job.model.alphabet: job.rows for job in jobs}
            adopt_legacy_run(directory, store, identities, wanted)
    return Embedded(classifier, store, run_passes(run, jobs), screened)

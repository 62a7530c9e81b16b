"""The whole story of `predict`, from sequences to tables."""

from __future__ import annotations

import logging

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import write_json
from virnucpro.config import PredictConfig
from virnucpro.embedding.loader import prepare_workers
from virnucpro.embedding.session import (
    Clock,
    claim_run,
    ending_together,
    open_monitor,
    run_job,
)
from virnucpro.legacy.adoption import adopt_legacy_run
from virnucpro.reports.run_results import (
    PredictResult,
    describe_passes,
    describe_run,
    summarize,
    write_tables,
)
from virnucpro.runtime.devices import choose_precision, make_accelerator
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.scoring.frame_scores import (
    FrameFeatures,
    failed_rows,
    make_frame_job,
    open_classifier,
    open_models,
    prepare_frames,
    score_frames,
)
from virnucpro.sequences.frame_store import FrameStore, open_frame_store

logger = logging.getLogger(__name__)


def predict(config: PredictConfig, on_progress: ProgressListener | None = None) -> PredictResult:
    """Call every input record viral or not and write the tables.

    In a launch of several processes each of them calls this, and the main one writes.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process.

    Returns:
        Counts and paths, the same in every process.

    Raises:
        VirnucproError: Whatever goes wrong that a user can mend; see `virnucpro.errors`.
    """
    clock = Clock()
    layout = RunDirectory(config.resolved_output_dir, config.stem)
    accelerator = make_accelerator(config)
    with (
        ending_together(accelerator),
        claim_run(layout, config.inputs, config, accelerator),
        open_monitor(accelerator, layout.metrics_path) as monitor,
    ):
        with clock.time("open models"):
            prepare_workers(config, accelerator.device)
            precision = choose_precision(config.precision, accelerator)
            models = open_models(config, accelerator)
            classifier = open_classifier(config, models)
        with clock.time("find open frames"):
            store = _find_frames(layout, config, accelerator)
        jobs = [make_frame_job(layout, config, store, model, precision) for model in models]
        if config.resume and accelerator.is_main_process:
            with clock.time("take over an older run"):
                alphabets = [model.alphabet for model in models]
                identities = [job.identity for job in jobs]
                adopt_legacy_run(layout, store, dict(zip(alphabets, identities, strict=True)))
        for job in jobs:
            with clock.time(job.name):
                clock.passes[job.name] = run_job(
                    job,
                    config,
                    accelerator,
                    on_progress,
                    monitor=monitor,
                    trust_parts=config.skip_checkpoint_validation,
                )
        result = None
        if accelerator.is_main_process:
            with clock.time("scores and tables"):
                failed = [failed_rows(clock.passes[job.name]) for job in jobs]
                frame_scores = score_frames(store, FrameFeatures(jobs, failed), classifier)
                calls, rule = write_tables(
                    layout, config, store, frame_scores, classifier.calibration
                )
            result = summarize(layout, store, calls, frame_scores, clock)
            run = describe_run(
                config, accelerator, store, models, classifier, precision, result, clock
            )
            run["calls"] = rule
            run["passes"] = describe_passes(clock, monitor)
            write_json(layout.run_json, run)
        shared: list[PredictResult] = broadcast_object_list([result])
    return shared[0]


def _find_frames(
    layout: RunDirectory, config: PredictConfig, accelerator: Accelerator
) -> FrameStore:
    if accelerator.is_main_process:
        prepare_frames(
            config.inputs,
            layout.frame_store_dir,
            chunk_length_bp=config.chunk_length_bp,
            min_length_bp=config.min_length_bp,
        )
    accelerator.wait_for_everyone()
    store = open_frame_store(layout.frame_store_dir)
    _tell_repeats(store)
    return store


def _tell_repeats(store: FrameStore) -> None:
    num_frames = store.num_frames
    num_dna, num_proteins = store.num_distinct("dna"), store.num_distinct("protein")
    logger.info(
        "identical sequences are embedded once: %s DNA and %s proteins of %s open frames, which "
        "saves %.1f %% and %.1f %%",
        f"{num_dna:,}",
        f"{num_proteins:,}",
        f"{num_frames:,}",
        100 * (num_frames - num_dna) / max(1, num_frames),
        100 * (num_frames - num_proteins) / max(1, num_frames),
    )

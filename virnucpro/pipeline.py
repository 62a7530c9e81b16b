"""The whole story of `predict`, from sequences to tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from virnucpro.adoption import adopt_legacy_run
from virnucpro.checkpoints.layout import RunLayout
from virnucpro.config import STDIN, PredictConfig
from virnucpro.devices import choose_precision, make_accelerator
from virnucpro.errors import CheckpointError, OutputExistsError, UsageError
from virnucpro.frame_scores import (
    failed_rows,
    make_frame_job,
    open_classifier,
    open_models,
    score_frames,
)
from virnucpro.frame_store import FrameStore, build_frame_store, open_frame_store
from virnucpro.loading import prepare_workers
from virnucpro.logs import log_to_file
from virnucpro.monitoring import ProgressListener
from virnucpro.outputs import (
    PredictResult,
    describe_passes,
    describe_run,
    summarize,
    write_tables,
)
from virnucpro.results import write_run_json
from virnucpro.session import (
    Clock,
    check_shared_directory,
    ending_together,
    locked,
    open_monitor,
    run_job,
)
from virnucpro.weights import digest_files

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
    layout = RunLayout(config.resolved_output_dir, config.stem)
    accelerator = make_accelerator(config)
    with (
        ending_together(accelerator),
        _claim_run(layout, config, accelerator),
        open_monitor(accelerator, layout.metrics_path) as monitor,
    ):
        with clock.time("open models"):
            prepare_workers(config, accelerator.device)
            precision = choose_precision(config.precision, accelerator)
            models = open_models(config, accelerator)
            classifier = open_classifier(config, models)
        with clock.time("find open frames"):
            if accelerator.is_main_process:
                _prepare_frames(layout, config)
            accelerator.wait_for_everyone()
            store = open_frame_store(layout.frame_store_dir)
            _tell_repeats(store)
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
                frame_scores = score_frames(store, jobs, failed, classifier)
                calls = write_tables(layout, config, store, frame_scores)
            result = summarize(layout, store, calls, frame_scores, clock)
            run = describe_run(
                config, accelerator, store, models, classifier, precision, result, clock
            )
            run["passes"] = describe_passes(clock, monitor)
            write_run_json(layout.run_json, run)
        shared: list[PredictResult] = broadcast_object_list([result])
    return shared[0]


@contextmanager
def _claim_run(
    layout: RunLayout, config: PredictConfig, accelerator: Accelerator
) -> Iterator[None]:
    """Hold the run directory, cleared if that was asked for, and log into it."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        check_shared_directory(accelerator, layout.output_dir)
        yield
        return
    directory = layout.output_dir
    own = [name for name in config.inputs if name != STDIN and layout.owns(Path(name))]
    if own:
        raise UsageError(
            f"{own[0]}: is a result that this run would replace; choose another output directory "
            "(-o), or copy it"
        )
    if layout.is_used() and not (config.force or config.resume):
        raise OutputExistsError(
            f"{directory}: exists already; continue that run with --resume, overwrite it with "
            "--force, or choose another output directory (-o)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with locked(layout.lock_path):
        if not config.resume:
            layout.clear()
        with log_to_file(layout.run_log):
            accelerator.wait_for_everyone()
            check_shared_directory(accelerator, layout.output_dir)
            yield


def _prepare_frames(layout: RunLayout, config: PredictConfig) -> None:
    """Build the frame store, unless a resumed run finds that of the same input in place."""
    if _is_built(layout, config):
        logger.info("the open frames of the earlier run are used again")
        return
    store = build_frame_store(
        config.inputs,
        layout.frame_store_dir,
        chunk_length_bp=config.chunk_length_bp,
        min_length_bp=config.min_length,
    )
    if store.num_duplicate_ids:
        logger.warning(
            "%d ids belong to several records, which are kept apart in every table: %s",
            store.num_duplicate_ids,
            ", ".join(store.duplicate_ids(limit=5)),
        )


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


def _is_built(layout: RunLayout, config: PredictConfig) -> bool:
    try:
        store = open_frame_store(layout.frame_store_dir)
    except CheckpointError:
        return False
    wanted = (config.chunk_length_bp, config.min_length)
    if (store.chunk_length_bp, store.min_length_bp) != wanted:
        return False
    paths = [Path(name) for name in config.inputs]
    if STDIN in config.inputs or not all(path.is_file() for path in paths):
        return False
    return [f"sha256:{file['sha256']}" for file in store.inputs] == [
        digest_files([path]) for path in paths
    ]

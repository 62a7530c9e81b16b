"""The screen of `predict --screen`: a small classifier judges the records that need no large one.

It is a prediction of its own, in `checkpoints/screen` of the run: its own frames, by the rule of
its classifier, and two passes of the same loop. Its probabilities say which records are cellular
beyond doubt. The large models see the rows of all other records.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import DEFAULT_THRESHOLD, MINI_DIRECTORY, PredictConfig
from virnucpro.embedding.jobs import Job, make_frame_jobs
from virnucpro.embedding.models import Model, open_frame_models
from virnucpro.embedding.passes import Pass, run_passes
from virnucpro.errors import ClassifierError, count_who
from virnucpro.runtime.logs import prefixed_messages
from virnucpro.runtime.run import Run
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.decisions import Decision
from virnucpro.scoring.frame_scores import (
    check_models,
    decide_records,
    open_classifier,
    score_passes,
)
from virnucpro.scoring.screened import Screened, choose_bound, expect_loss
from virnucpro.sequences.frame_store import FrameStore
from virnucpro.sequences.records import NAMES_OF_ROWS
from virnucpro.workflows.finding import find_frames

MINI = "mini"
_PREFIX = "screen: "

logger = logging.getLogger(__name__)


class Screen(NamedTuple):
    """A screen with its models opened.

    Attributes:
        config: The settings of its own prediction.
        classifier: Its own.
        models: Its own, for DNA and for proteins.
    """

    config: PredictConfig
    classifier: Classifier
    models: list[Model]


@prefixed_messages(_PREFIX)
def open_screen_models(run: Run, config: PredictConfig, run_classifier: Classifier) -> Screen:
    """Open the screen of a run; every process of a launch calls this.

    Args:
        run: The run.
        config: Its settings.
        run_classifier: Its classifier.

    Raises:
        ClassifierError: The screen's classifier cannot be used, or has no calibration.
        VirnucproError: Its models cannot be used.
    """
    if run.is_main and config.screen == config.model_type == MINI and config.model_path is None:
        logger.warning("the screen is the run's own model, so it saves no time")
    with run.stage(f"{_PREFIX}open models"):
        config, classifier = open_screen(config, run_classifier)
        models = open_frame_models(run, config, classifier.changes)
        check_models(config, classifier, models)
    return Screen(config, classifier, models)


@prefixed_messages(_PREFIX)
def screen_records(
    run: Run, directory: RunDirectory, screen: Screen, read_before: FrameStore
) -> Screened:
    """Return which records are cellular beyond doubt; every process of a launch calls this.

    Args:
        run: The run.
        directory: The run's directory.
        screen: The screen.
        read_before: The run's own store, which has read the input.

    Raises:
        VirnucproError: Every error of a prediction.
    """
    config, classifier, models = screen
    precision = choose_screen_precision(run.precision)
    with run.stage(f"{_PREFIX}find {NAMES_OF_ROWS[classifier.rule.kind]}"):
        store = find_frames(
            run, directory.screen, config, models, classifier.rule, precision, read_before
        )
    jobs = make_screen_jobs(config, directory, store, models, precision)
    return judge_records(run, config, store, run_passes(run, jobs), classifier)


@prefixed_messages(_PREFIX)
def judge_records(
    run: Run, config: PredictConfig, store: FrameStore, passes: list[Pass], classifier: Classifier
) -> Screened:
    """Return what the passes of a screen say of the records.

    Args:
        run: The run.
        config: Of the screen, as `open_screen` returns it.
        store: The screen's own.
        passes: The finished passes of the screen.
        classifier: The screen's own.

    Raises:
        CheckpointError: An embedding is missing.
    """
    calibration = classifier.calibration
    assert calibration is not None, "open_screen has looked"
    records, is_cellular, about = None, None, None
    if run.is_main:
        with run.stage("screen: scores"):
            scores = score_passes(store, passes, classifier)
            decision = decide_records(config, store, scores.chunks, classifier)
            records = decision.records
        # What would be called viral is never left out, whatever may be lost.
        usual = DEFAULT_THRESHOLD if config.threshold is None else config.threshold
        bound = choose_bound(records.probability, config.screen_loss, min(usual, DEFAULT_THRESHOLD))
        # A record without a probability is NaN here, and below nothing: the large models judge it.
        is_cellular = records.probability < bound
        models = [each.job.model for each in passes]
        about = _describe(config, models, decision, calibration, bound, is_cellular)
        logger.info(
            "screen: %s a probability below %.4g (cellular); %.2g %% of the viral records "
            "are expected to be among them",
            count_who(int(is_cellular.sum()), "record", "have", of=len(is_cellular)),
            bound,
            100 * about["expected_loss"],
        )
    return Screened(run.share(is_cellular), records, calibration, passes, run.share(about))


def make_screen_jobs(
    config: PredictConfig,
    directory: RunDirectory,
    store: FrameStore,
    models: Sequence[Model],
    precision: str,
) -> list[Job]:
    """Return the jobs of the screen of the run in `directory`."""
    jobs = make_frame_jobs(config, directory.screen, store, models, precision)
    # Named apart, because run.json and the monitor tell passes by their names.
    return [dataclasses.replace(job, name=f"{_PREFIX}{job.name}") for job in jobs]


def choose_screen_precision(precision: str) -> str:
    """Return what the screen of a run in `precision` computes in."""
    # fp8 saves nothing in a small model, and its probabilities must be good.
    return "bf16" if precision == "fp8" else precision


@prefixed_messages(_PREFIX)
def open_screen(
    config: PredictConfig, run_classifier: Classifier
) -> tuple[PredictConfig, Classifier]:
    """Return the settings of the screen of a run, and the screen's classifier.

    Args:
        config: The settings of the run.
        run_classifier: The classifier of the run.

    Raises:
        ClassifierError: The classifier cannot be used, or has no calibration.
    """
    config = _configure(config, run_classifier)
    classifier = open_classifier(config)
    if classifier.calibration is None:
        raise ClassifierError(
            f"{config.resolved_model_path}: a screen needs probabilities, and this classifier "
            "has no calibration; virnucpro calibrate makes one from a labelled run"
        )
    return config, classifier


def _configure(config: PredictConfig, run_classifier: Classifier) -> PredictConfig:
    """Return the settings of the screen's own prediction."""
    assert config.screen is not None, "predict asks only then"
    # Anything else is a path.
    is_mini = config.screen == MINI
    return dataclasses.replace(
        config,
        model_type=MINI if is_mini else "custom",
        model_path=None if is_mini else Path(config.screen),
        # The run's own backends and batch sizes are for large models.
        dna_backend=PredictConfig.dna_backend,
        protein_backend=PredictConfig.protein_backend,
        dna_weights=config.screen_dna_weights or str(MINI_DIRECTORY / "dnabert_s"),
        protein_weights=config.screen_protein_weights or str(MINI_DIRECTORY / "esm2"),
        dna_batch_tokens=None,
        protein_batch_tokens=None,
        # That of the run, and not what the screen's own file states.
        threshold=run_classifier.threshold if config.threshold is None else config.threshold,
        max_fdr=None,
        preset=None,
        screen=None,
        shard=None,
    )


def _describe(
    config: PredictConfig,
    models: Sequence[Model],
    decision: Decision,
    calibration: Calibration,
    bound: float,
    is_cellular: BoolArray,
) -> dict[str, Any]:
    return {
        "path": str(config.resolved_model_path),
        "backends": [model.describe() for model in models],
        "calibration": dataclasses.asdict(calibration),
        "viral_share": decision.rule.viral_share,
        "max_loss": config.screen_loss,
        "expected_loss": expect_loss(decision.records.probability, is_cellular),
        "bound": bound,
        "num_records": int(np.count_nonzero(is_cellular)),
    }

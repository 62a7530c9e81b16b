"""What a training reports: its figures on test records, and how the classifier was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.backend.weights import digest_files
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import DEFAULT_THRESHOLD, TrainConfig
from virnucpro.reports.figures import Curve, draw_report
from virnucpro.reports.report import (
    Resampled,
    Section,
    against_the_rest,
    find_overfit,
    measure_subsets,
)
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.sequences.frame_store import FrameStore
from virnucpro.training.corpus import describe_classes
from virnucpro.training.finetuning import FineTuned
from virnucpro.training.fragments import SIZES, Fragments, make_predictions, name_size
from virnucpro.training.head import FittedHead
from virnucpro.training.splits import SPLITS, Labelled
from virnucpro.workflows.finetune import describe_settings

_NO_CALIBRATION = (
    "the scores of the split valid do not tell viral records from others, so the classifier has no "
    "calibration, and predict calls by its scores; more records, or more groups, would help"
)


class Material(NamedTuple):
    """Everything that a classifier is made of.

    Attributes:
        labelled: The records, and the chunks of each split.
        gather: Returns the features of rows, float32 (n, D).
        metadata: Of the classifier, but for its calibration.
        store: What the frame rule takes of chunks; None for a classifier of single frames.
        tuned: What a fine-tuning made; None without one.
        warnings: What was found in the records, and was logged.
    """

    labelled: Labelled
    gather: Callable[[Int64Array], Float32Array]
    metadata: ClassifierMetadata
    store: FrameStore | None = None
    tuned: FineTuned | None = None
    warnings: Sequence[str] = ()


def report_test(
    config: TrainConfig,
    directory: RunDirectory,
    material: Material,
    calibration: Calibration | None,
    test: Fragments,
    fitted: FittedHead,
) -> list[Section]:
    """Draw the figures and return the figures in numbers of what training has not seen."""
    corpus = material.labelled.corpus
    _, cluster_of_record = np.unique(np.array(material.labelled.groups), return_inverse=True)
    probability = test.score
    if calibration is not None:
        probability = calibration.probabilities(test.score, test.num_open_chunks)
    found = make_predictions(corpus, test, probability, cluster_of_record, DEFAULT_THRESHOLD)
    if calibration is None:
        # The calls are by score, and there are no probabilities to measure.
        found = found._replace(probability=np.full(len(probability), np.nan))
    used = found.weight > 0
    found, size = found.select(used), test.size[used]
    lengths = [(name_size(one), size == one) for one in SIZES]
    class_of_fragment = corpus.record_class[test.record[used]]
    classes = [
        against_the_rest(f"class {one.name}", class_of_fragment == index, found.is_viral)
        for index, one in enumerate(corpus.classes)
    ]
    resampled: Resampled = "records" if config.groups is None else "groups"
    measured = measure_subsets("test", found, [*lengths, *classes], resampled, config.seed)
    title = f"{config.output_path.name}: held-out records"
    curves = [Curve(found, measured[0])]
    draw_report(directory.path, title, curves, measured, classes, fitted.losses, fitted.best_epoch)
    # What probabilities would be worth without the calibration.
    before = found._replace(probability=found.score)
    name = "test, score taken as probability"
    return [*measured, *measure_subsets(name, before, lengths, resampled, config.seed)]


def describe_choice(config: TrainConfig, material: Material) -> dict[str, Any]:
    """Return what the classifier's file says of the records that were chosen."""
    corpus, _, _, chunks = material.labelled
    return {
        "classes": [one._asdict() for one in corpus.classes],
        "groups": None if config.groups is None else describe_file(config.groups),
        "num_frames": {name: int(corpus.num_frames[chunks[name]].sum()) for name in SPLITS},
        "settings": _describe_settings(config),
    }


def _describe_settings(config: TrainConfig) -> dict[str, Any]:
    if not config.finetuned:
        names = ("seed", "epochs", "valid_share", "test_share")
        return {name: getattr(config, name) for name in names}
    teacher = None if config.teacher is None else describe_file(config.teacher)
    return describe_settings(config) | {"minutes": config.minutes, "teacher": teacher}


def describe_training(
    config: TrainConfig, material: Material, fitted: FittedHead, metadata: ClassifierMetadata
) -> dict[str, Any]:
    """Return what the report says besides the figures."""
    corpus, groups, _, chunks = material.labelled
    return {
        "classifier": {
            "path": str(config.output_path),
            # Read back, so that it is the digest of the file as it was written.
            "identity": load_classifier(config.output_path).identity,
            "metadata": dataclasses.asdict(metadata),
        },
        "classes": describe_classes(corpus, chunks, groups),
        "best_epoch": fitted.best_epoch,
        "losses": fitted.losses,
        "warnings": [
            *material.warnings,
            *find_overfit(fitted.losses, fitted.best_epoch),
            *([_NO_CALIBRATION] if metadata.calibration is None else []),
        ],
    }


def describe_file(path: str | Path) -> dict[str, Any]:
    """Return the path of a file and its digest."""
    return {"path": str(path), "sha256": digest_files([Path(path)]).removeprefix("sha256:")}

"""Scores of open frames: the classifier of a run, and what it says of the embedded frames.

Shapes: F open frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virnucpro.backend.arrays import Float32Array, split_rows
from virnucpro.config import PredictConfig
from virnucpro.embedding.models import Model
from virnucpro.embedding.passes import Pass, gather_features
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.scoring.decisions import check_calibrated
from virnucpro.sequences.frame_store import FrameStore


def open_classifier(config: PredictConfig, models: Sequence[Model]) -> Classifier:
    """Return the classifier of a run, which fits the models and the chunks.

    Raises:
        ClassifierError: The file cannot be read, the classifier was made for other models or
            chunks, or it has no calibration and the settings need one.
    """
    classifier = load_classifier(config.resolved_model_path)
    dna, protein = ((model.name, model.weights.embedding_dim) for model in models)
    identities = (models[0].weights.identity, models[1].weights.identity)
    classifier.check_fits(dna, protein, config.chunk_length_bp, identities)
    check_calibrated(config, classifier.calibration, config.resolved_model_path)
    return classifier


def score_frames(store: FrameStore, passes: Sequence[Pass], classifier: Classifier) -> Float32Array:
    """Return float32 (F, 2): P(others) and P(virus) of every open frame, in row order.

    A frame without an embedding, because it exceeded a device's memory, has NaN.

    Args:
        store: The open frames.
        passes: The finished passes, DNA and then proteins.
        classifier: What scores them.

    Raises:
        CheckpointError: An embedding is missing.
    """
    scores = np.full((store.num_frames, 2), np.nan, dtype=np.float32)
    for block in split_rows(0, store.num_frames):
        rows = np.arange(block.start, block.stop)
        for each in passes:
            rows = rows[each.has(rows)]
        scores[rows] = classifier.score(gather_features(passes, rows))
    return scores

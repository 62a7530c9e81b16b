"""How open frames get their scores: two models, a pass with each, and the classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from virnucpro.batching import unique_rows
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.layout import RunLayout
from virnucpro.checkpoints.parts import finished_parts
from virnucpro.classifier import Classifier, load_classifier
from virnucpro.config import PredictConfig
from virnucpro.embedding import EmbeddingJob, EmbeddingSummary
from virnucpro.errors import UsageError
from virnucpro.frame_store import FrameStore
from virnucpro.session import Model, open_model

_ROWS_AT_ONCE = 16_384


def open_models(config: PredictConfig, accelerator: Accelerator) -> list[Model]:
    """Return the DNA model and the protein model.

    Raises:
        BackendError: A backend is not there, or broken.
        WeightsError: Weights cannot be used, or differ between machines.
        UsageError: A backend reads the other alphabet.
    """
    models = [
        open_model(accelerator, config.dna_backend, config.dna_weights),
        open_model(accelerator, config.protein_backend, config.protein_weights),
    ]
    for model, alphabet in zip(models, ("dna", "protein"), strict=True):
        if model.alphabet != alphabet:
            raise UsageError(
                f"backend {model.loaded.name} reads {model.alphabet}, {alphabet} was wanted; "
                "`virnucpro backends` lists what each one reads"
            )
    return models


def open_classifier(config: PredictConfig, models: Sequence[Model]) -> Classifier:
    """Return the classifier, which fits the models and the chunks.

    Raises:
        ClassifierError: It cannot be read, or was made for others.
    """
    classifier = load_classifier(config.resolved_model_path)
    dna, protein = ((model.loaded.name, model.weights.embedding_dim) for model in models)
    classifier.check_fits(dna, protein, config.chunk_length_bp)
    return classifier


def make_frame_job(
    layout: RunLayout, config: PredictConfig, store: FrameStore, model: Model, precision: str
) -> EmbeddingJob:
    """Return the pass of one model over the distinct sequences of the store."""
    alphabet = model.alphabet
    source = store.sequences(alphabet)
    # Leaving records out moves the rows of those after them.
    rows = f"{store.input_digest} from {config.min_length} bp on"
    return EmbeddingJob(
        name="DNA embeddings" if alphabet == "dna" else "protein embeddings",
        backend=model.loaded.backend,
        weights=model.weights,
        source=source,
        rows=unique_rows(source),
        parts_dir=layout.parts_dir(alphabet),
        identity=model.make_identity(rows, precision, config.chunk_length_bp),
        batch_tokens=config.dnabert_batch_size if alphabet == "dna" else config.esm_batch_size,
    )


def failed_rows(summaries: Sequence[EmbeddingSummary]) -> list[int]:
    """Return the rows that no process had the memory for."""
    return [row for summary in summaries for row in summary.failed_rows]


def score_frames(
    store: FrameStore,
    jobs: Sequence[EmbeddingJob],
    failed: Sequence[list[int]],
    classifier: Classifier,
) -> npt.NDArray[np.float32]:
    """Return float32 (F, 2): P(others) and P(virus) of every open frame, in row order.

    Frames that a device had not the memory for, in one pass or the other, have NaN.

    Args:
        store: The open frames.
        jobs: The finished passes, DNA and then proteins.
        failed: Of each pass, the rows that have no embedding.
        classifier: What scores them.

    Raises:
        CheckpointError: An embedding is missing.
    """
    readers = [EmbeddingReader(finished_parts(job.parts_dir)) for job in jobs]
    scores = np.full((store.num_frames, 2), np.nan, dtype=np.float32)
    for start in range(0, store.num_frames, _ROWS_AT_ONCE):
        block = slice(start, min(start + _ROWS_AT_ONCE, store.num_frames))
        rows = [job.source.representatives[block] for job in jobs]
        is_there = ~np.logical_or(*map(np.isin, rows, failed))
        features = [
            reader.gather(wanted[is_there]) for reader, wanted in zip(readers, rows, strict=True)
        ]
        scores[block][is_there] = classifier.score(np.concatenate(features, axis=1))
    return scores

"""How open frames get their scores: they are found, embedded by two models, and classified.

Shapes: n rows, D numbers for a row (its DNA embedding, then its protein embedding), F open frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from virnucpro.backend.weights import digest_files
from virnucpro.checkpoints.embedding_reader import EmbeddingReader
from virnucpro.checkpoints.parts import FloatArray, IntArray, finished_parts
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import STDIN, FramesConfig, PredictConfig
from virnucpro.embedding.batches import unique_rows
from virnucpro.embedding.loop import EmbeddingJob, EmbeddingSummary
from virnucpro.embedding.session import Model, open_model
from virnucpro.errors import CheckpointError, ClassifierError, UsageError
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.sequences.frame_store import FrameStore, build_frame_store, open_frame_store

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 16_384


def open_models(config: FramesConfig, accelerator: Accelerator) -> list[Model]:
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
        ClassifierError: It cannot be read, was made for others, or has no calibration where the
            settings need one.
    """
    classifier = load_classifier(config.resolved_model_path)
    dna, protein = ((model.loaded.name, model.weights.embedding_dim) for model in models)
    identities = (models[0].weights.identity, models[1].weights.identity)
    classifier.check_fits(dna, protein, config.chunk_length_bp, identities)
    asked = [name for name in ("max_fdr", "viral_share") if getattr(config, name) is not None]
    if asked and classifier.calibration is None:
        raise ClassifierError(
            f"{config.resolved_model_path}: {asked[0]} needs probabilities, and this classifier "
            "has no calibration: its score is not a probability. Choose records by their score "
            "(threshold), or a classifier that `virnucpro train` made"
        )
    return classifier


def prepare_frames(
    inputs: Sequence[str], directory: Path, *, chunk_length_bp: int, min_length_bp: int = 0
) -> None:
    """Build the frame store, unless a resumed run finds that of the same input in place.

    Args:
        inputs: Paths of nucleotide FASTA or FASTQ files; `-` is standard input.
        directory: Where the store lies.
        chunk_length_bp: The length of chunks.
        min_length_bp: Shorter records get no chunks.

    Raises:
        InputError: An input cannot be read.
        CheckpointError: The store cannot be written.
    """
    if _is_built(inputs, directory, (chunk_length_bp, min_length_bp)):
        logger.info("the open frames of the earlier run are used again")
        return
    store = build_frame_store(
        inputs, directory, chunk_length_bp=chunk_length_bp, min_length_bp=min_length_bp
    )
    if store.num_duplicate_ids:
        logger.warning(
            "%d ids belong to several records, which are kept apart in every table: %s",
            store.num_duplicate_ids,
            ", ".join(store.duplicate_ids(limit=5)),
        )


def _is_built(inputs: Sequence[str], directory: Path, wanted: tuple[int, int]) -> bool:
    try:
        store = open_frame_store(directory)
    except CheckpointError:
        return False
    if (store.chunk_length_bp, store.min_length_bp) != wanted:
        return False
    paths = [Path(name) for name in inputs]
    if STDIN in inputs or not all(path.is_file() for path in paths):
        return False
    return [f"sha256:{file['sha256']}" for file in store.inputs] == [
        digest_files([path]) for path in paths
    ]


def make_frame_job(
    layout: RunDirectory,
    config: FramesConfig,
    store: FrameStore,
    model: Model,
    precision: str,
    rows: IntArray | None = None,
) -> EmbeddingJob:
    """Return the pass of one model over distinct sequences of the store: of `rows`, or all."""
    alphabet = model.alphabet
    source = store.sequences(alphabet)
    # Leaving records out moves the rows of those after them.
    counted = f"{store.input_digest} from {store.min_length_bp} bp on"
    return EmbeddingJob(
        name="DNA embeddings" if alphabet == "dna" else "protein embeddings",
        backend=model.loaded.backend,
        weights=model.weights,
        source=source,
        rows=unique_rows(source) if rows is None else np.unique(source.representatives[rows]),
        parts_dir=layout.parts_dir(alphabet),
        identity=model.make_identity(counted, precision, store.chunk_length_bp),
        batch_tokens=config.dna_batch_tokens if alphabet == "dna" else config.protein_batch_tokens,
    )


def failed_rows(summaries: Sequence[EmbeddingSummary]) -> list[int]:
    """Return the rows that no process had the memory for."""
    return [row for summary in summaries for row in summary.failed_rows]


class FrameFeatures:
    """The features of embedded frames by row, once the passes of both models are done."""

    def __init__(self, jobs: Sequence[EmbeddingJob], failed: Sequence[Sequence[int]]) -> None:
        """Open the finished parts.

        Args:
            jobs: The finished passes, DNA and then proteins.
            failed: Of each pass, the rows that have no embedding.

        Raises:
            CheckpointError: A part cannot be read.
        """
        self._sources = [job.source for job in jobs]
        self._failed = failed
        self._readers = [EmbeddingReader(finished_parts(job.parts_dir)) for job in jobs]

    def are_there(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Return bool (n,): which rows have both embeddings."""
        found = np.ones(len(rows), np.bool_)
        for source, failed in zip(self._sources, self._failed, strict=True):
            found &= ~np.isin(source.representatives[rows], failed)
        return found

    def gather(self, rows: IntArray) -> FloatArray:
        """Return float32 (n, D) of rows that are there, in their order.

        Raises:
            CheckpointError: An embedding is missing.
        """
        dims = [reader.embedding_dim for reader in self._readers]
        features_ND = np.empty((len(rows), sum(dims)), np.float32)
        columns_of_models = np.split(features_ND, np.cumsum(dims)[:-1], axis=1)
        # In blocks, so that training has its many frames in memory once.
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            for reader, source, columns_NE in zip(
                self._readers, self._sources, columns_of_models, strict=True
            ):
                columns_NE[block] = reader.gather(source.representatives[rows[block]])
        return features_ND


def score_frames(
    store: FrameStore, features: FrameFeatures, classifier: Classifier
) -> npt.NDArray[np.float32]:
    """Return float32 (F, 2): P(others) and P(virus) of every open frame, in row order.

    Frames that a device had not the memory for, in one pass or the other, have NaN.

    Raises:
        CheckpointError: An embedding is missing.
    """
    scores = np.full((store.num_frames, 2), np.nan, dtype=np.float32)
    for start in range(0, store.num_frames, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, store.num_frames))
        rows = rows[features.are_there(rows)]
        scores[rows] = classifier.score(features.gather(rows))
    return scores

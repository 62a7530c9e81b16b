"""Scores of a run: its classifier, and what it says of the embedded frames and of the chunks.

Shapes: F rows of the frame store, C chunks, S stretches of a chunk, P numbers of a protein
embedding, Q numbers of a DNA embedding, K features of a stretch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float32Array, Int64Array, split_rows
from virnucpro.backend.interface import Alphabet
from virnucpro.backend.weights import find_download
from virnucpro.config import FramesConfig, PredictConfig, TrainConfig
from virnucpro.config.shared import DNA_DIM, PROTEIN_DIM
from virnucpro.embedding.models import Model, check_backends
from virnucpro.embedding.passes import Pass, gather_features
from virnucpro.runtime.devices import few_threads
from virnucpro.scoring.calls import (
    NO_STRETCH,
    ChunkCalls,
    RecordCalls,
    call_by_mean_logit,
    call_chunk_logits,
    call_chunks,
    call_records,
    take_screened,
)
from virnucpro.scoring.chunk_head import NUM_FEATURES
from virnucpro.scoring.classifier import ChunkClassifier, Classifier, FrameClassifier
from virnucpro.scoring.classifier_files import load_classifier
from virnucpro.scoring.decisions import Decision, check_calibrated, decide_calls
from virnucpro.scoring.screened import Screened
from virnucpro.sequences.frame_store import FrameStore

Block = TypeVar("Block")

logger = logging.getLogger(__name__)

# With ESM-2 3B, two stretches of so many chunks take 84 MB.
_CHUNKS_AT_ONCE = 1 << 12
# 34 MB. Of more chunks, more rows are read from each part, and opening a part costs as much as
# reading ten rows. Of fewer chunks, more is read while others are scored.
_NUMBERS_AT_ONCE = 1 << 23


class Scores(NamedTuple):
    """What a classifier says of a run.

    Attributes:
        chunks: The calls of all chunks.
        frames: float32 (F, 2), P(others) and P(virus) of every open frame, in row order; a frame
            without an embedding has NaN. None if the classifier scores chunks as a whole.
    """

    chunks: ChunkCalls
    frames: Float32Array | None


class Embedded(NamedTuple):
    """What a prediction knows when both models have embedded its frames.

    Attributes:
        classifier: What scores them.
        store: The frames or stretches.
        passes: The finished passes, DNA and then proteins.
        screened: What a screen has judged before; None without one.
    """

    classifier: Classifier
    store: FrameStore
    passes: list[Pass]
    screened: Screened | None = None


def open_classifier(config: PredictConfig) -> Classifier:
    """Return the classifier of a run, which fits what the settings say of models and chunks.

    The models may be large and far away, so nothing of them is needed here.

    Raises:
        BackendError: A backend is not installed, or it is broken.
        ClassifierError: The file cannot be read, the classifier was made for other models or
            chunks, or it has no calibration and the settings need one.
        UsageError: A backend reads the other alphabet, or cannot change its weights as the
            classifier wants.
    """
    # First what costs nothing: a name that is wrong must show before a file of gigabytes is read.
    check_backends(config)
    classifier = load_classifier(config.resolved_model_path)
    dna = config.dna_backend, _expect_dim(config, "dna", DNA_DIM)
    protein = config.protein_backend, _expect_dim(config, "protein", PROTEIN_DIM)
    classifier.check_fits(dna, protein, config.chunk_length_bp, None)
    check_backends(config, classifier.changes)
    # A screen has probabilities of its own, which depend on the share of viral records.
    needed = config
    if config.screen is not None:
        needed = replace(config, viral_share=None, estimate_viral_share=None)
    check_calibrated(needed, classifier.calibration, config.resolved_model_path)
    logger.info(
        "frame rule: %s, as %s states; chunks of %s bp",
        classifier.rule,
        config.resolved_model_path,
        f"{config.chunk_length_bp:,}",
    )
    return classifier


def _expect_dim(config: PredictConfig, alphabet: Alphabet, published: int) -> int | None:
    """Return the numbers in an embedding by published weights that are not here yet, or None."""
    names = f"{alphabet}_backend", f"{alphabet}_weights"
    if any(getattr(config, name) != getattr(FramesConfig, name) for name in names):
        return None
    default: str = getattr(FramesConfig, names[1])
    # Weights that are here say it themselves when they are opened. In a hub's cache, smaller ones
    # may stand for the published ones.
    is_here = find_download(default) or find_download(default.partition("@")[0])
    return None if is_here else published


def check_models(
    config: PredictConfig | TrainConfig, classifier: Classifier, models: Sequence[Model]
) -> None:
    """Check that the opened models are those of the classifier.

    Raises:
        ClassifierError: They are not.
    """
    dna, protein = ((model.name, model.weights.embedding_dim) for model in models)
    identities = (models[0].weights.identity, models[1].weights.identity)
    classifier.check_fits(dna, protein, config.chunk_length_bp, identities)


@few_threads()
def score_passes(store: FrameStore, passes: Sequence[Pass], classifier: Classifier) -> Scores:
    """Return the scores of all chunks, made as the kind of the classifier says.

    Args:
        store: The frames or stretches, found by the classifier's rule.
        passes: The finished passes, DNA and then proteins.
        classifier: What scores them.

    Raises:
        CheckpointError: An embedding is missing.
    """
    if isinstance(classifier, ChunkClassifier):
        return _score_chunks(store, passes, classifier)
    assert isinstance(classifier, FrameClassifier), "there are two kinds"
    frames = score_frames(store, passes, classifier)
    return Scores(call_chunks(frames, store.chunk_first_frame), frames)


def leave_out(scores: Scores, store: FrameStore, is_cellular: BoolArray) -> Scores:
    """Return the scores without those of records that a screen has judged.

    A record may share a frame with one that the screen did not judge, and so have a score by
    chance.

    Args:
        scores: Of all frames and chunks.
        store: The frames or stretches.
        is_cellular: bool (R,), the records that the screen has judged.
    """
    is_out = np.repeat(is_cellular, np.diff(store.record_first_chunk))
    chunks, frames = scores
    unscored = chunks._replace(
        is_open=chunks.is_open & ~is_out,
        # These frames were left out on purpose, and no device lacked the memory for them.
        num_unscored=np.where(is_out, 0, chunks.num_unscored),
        max_others=np.where(is_out, np.float32(np.nan), chunks.max_others),
        max_virus=np.where(is_out, np.float32(np.nan), chunks.max_virus),
    )
    if frames is not None:
        frames[np.repeat(is_out, np.diff(store.chunk_first_frame))] = np.nan
    return Scores(unscored, frames)


def score_records(
    config: PredictConfig, store: FrameStore, chunks: ChunkCalls, classifier: Classifier
) -> RecordCalls:
    """Return all records with their scores, made as the kind of the classifier says."""
    records = call_records(
        chunks, store.record_first_chunk, store.record_lengths, config.min_length_bp
    )
    # A head over chunks gives logits, so its records are scored by the mean of logits.
    if isinstance(classifier, ChunkClassifier):
        records = call_by_mean_logit(records, chunks, store.record_first_chunk)
    if classifier.rule.kind == "stretches":
        reason = np.where(records.reason == "no_open_frame", NO_STRETCH, records.reason)
        records = records._replace(reason=reason)
    return records


def decide_records(
    config: PredictConfig,
    store: FrameStore,
    chunks: ChunkCalls,
    classifier: Classifier,
    screened: Screened | None = None,
) -> Decision:
    """Return the calls of all records."""
    records = score_records(config, store, chunks, classifier)
    if screened is not None and screened.records is not None:
        records = take_screened(records, screened.records, screened.is_cellular)
    return decide_calls(
        records,
        config,
        classifier.calibration,
        classifier.threshold,
        None if screened is None else screened.calibration,
        None if screened is None else screened.about["viral_share"],
    )


def score_frames(
    store: FrameStore, passes: Sequence[Pass], classifier: FrameClassifier
) -> Float32Array:
    """Return float32 (F, 2): P(others) and P(virus) of every open frame, in row order.

    A frame without an embedding, because it exceeded a device's memory, has NaN.

    Args:
        store: The open frames.
        passes: The finished passes, DNA and then proteins.
        classifier: What scores them.

    Raises:
        CheckpointError: An embedding is missing.
    """
    # NaN, so that a frame without an embedding cannot be taken for one with a score.
    scores = np.full((store.num_rows, 2), np.nan, dtype=np.float32)
    for rows, features_ND in _one_ahead(_gather_frames(store, passes)):
        scores[rows] = classifier.score(features_ND)
    return scores


def _gather_frames(
    store: FrameStore, passes: Sequence[Pass]
) -> Iterator[tuple[Int64Array, Float32Array]]:
    # In blocks, because the features of all frames may be larger than the memory.
    for block in split_rows(0, store.num_rows):
        rows = np.arange(block.start, block.stop)
        for each in passes:
            # A frame needs both embeddings, because the classifier reads them side by side.
            rows = rows[each.has(rows)]
        yield rows, gather_features(passes, rows)


def _one_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks; while the caller works on one, a thread makes the next."""
    with ThreadPoolExecutor(1, "gathering") as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


def _score_chunks(store: FrameStore, passes: Sequence[Pass], classifier: ChunkClassifier) -> Scores:
    """Return the calls of all chunks by the head over their rows.

    A row without an embedding is left out. A chunk without any embedded row has no score.
    """
    num_unscored = np.zeros(store.num_chunks, np.int64)
    logits = np.full(store.num_chunks, np.nan, np.float32)
    for scored, arrays in _one_ahead(_gather_chunks(store, passes, classifier, num_unscored)):
        logits[scored] = classifier.score(*arrays)
    num_rows = np.diff(store.chunk_first_frame)
    return Scores(call_chunk_logits(logits, num_rows, num_unscored), None)


def _gather_chunks(
    store: FrameStore, passes: Sequence[Pass], classifier: ChunkClassifier, num_unscored: Int64Array
) -> Iterator[tuple[Int64Array, tuple[Float32Array, Float32Array, Float32Array, BoolArray]]]:
    """Yield chunks with an embedded row, block by block, and what the classifier reads of them.

    Rows that lack an embedding are counted in `num_unscored`, int64 (C,).
    """
    dna, protein = passes
    first_row = store.chunk_first_frame
    sizes, num_places = classifier.sizes, classifier.rule.max_rows
    numbers_of_chunk = sizes.dna_dim + num_places * (sizes.protein_dim + NUM_FEATURES)
    step = max(_CHUNKS_AT_ONCE, _NUMBERS_AT_ONCE // numbers_of_chunk)
    for start in range(0, store.num_chunks, step):
        stop = min(start + step, store.num_chunks)
        rows = np.arange(first_row[start], first_row[stop])
        has_both = dna.has(rows) & protein.has(rows)
        # A chunk may lack several stretches, which a plain `+=` would count once.
        np.add.at(num_unscored, store.find_chunks(rows[~has_both]), 1)
        rows = rows[has_both]
        if not len(rows):
            continue
        chunk = store.find_chunks(rows)
        # All stretches of a chunk have its DNA. Of open frames the head reads the first one's.
        scored, first, index = np.unique(chunk, return_index=True, return_inverse=True)
        # The place of a stretch in its chunk, also if stretches before it have no embedding.
        place = rows - first_row[chunk]
        shape = (len(scored), num_places)
        protein_CSP = np.zeros((*shape, sizes.protein_dim), np.float32)
        features_CSK = np.zeros((*shape, NUM_FEATURES), np.float32)
        is_stretch_CS = np.zeros(shape, np.bool_)
        places = zip(index.tolist(), place.tolist(), strict=True)
        protein.gather_into([protein_CSP[one] for one in places], rows)
        features_CSK[index, place] = store.stretch_features(rows)
        is_stretch_CS[index, place] = True
        yield scored, (dna.gather(rows[first]), protein_CSP, features_CSK, is_stretch_CS)

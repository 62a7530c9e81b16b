"""Held-out chunks, which tell again and again how good a network in training is.

Shapes: C chunks, B of them in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from virnucpro.backend.arrays import Float64Array, Int64Array
from virnucpro.config import DEFAULT_THRESHOLD, TrainConfig
from virnucpro.reports.metrics import measure_metrics
from virnucpro.runtime.run import Run
from virnucpro.scoring.calls import sigmoid
from virnucpro.sequences.frame_store import FrameStore
from virnucpro.training.chunk_source import Collators, TrainingBatch, collate
from virnucpro.training.corpus import Corpus
from virnucpro.training.fragments import join_chunks, make_predictions
from virnucpro.training.splits import HELD_OUT_RUN, Labelled, balance

MAX_CHUNKS = 8192
"""More held-out chunks would cost time, and hardly make the figures more exact."""


_CHUNKS_AT_ONCE = 1024


class Measured(NamedTuple):
    """How good a network is.

    Attributes:
        loss: The cross-entropy of chunks, weighted by class.
        auroc: The area under the ROC curve over fragments of all lengths, weighted by class.
    """

    loss: float
    auroc: float


class HeldOut:
    """This process's share of the held-out chunks, tokenized once."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        labelled: Labelled,
        store: FrameStore,
        collators: Collators,
    ) -> None:
        self._run = run
        corpus = self._corpus = labelled.corpus
        self.chunks = _take(corpus, labelled.chunks["valid"], config.seed)
        mine = np.arange(run.rank, len(self.chunks), run.num_processes)
        rows = corpus.rows(self.chunks[mine])
        # The second feature grows with the length of a stretch, and the first one is the longest.
        length = store.stretch_features(rows)[_first(corpus.num_frames[self.chunks[mine]]), 1]
        # By length, so that the sequences of a batch are alike.
        mine = mine[np.argsort(length, kind="stable")]
        self._batches: list[tuple[Int64Array, TrainingBatch]] = []
        for start in range(0, len(mine), _CHUNKS_AT_ONCE):
            places = mine[start : start + _CHUNKS_AT_ONCE]
            batch = _read_batch(corpus, store, self.chunks[places], collators)
            batches = batch.cut(config.micro_batch_tokens)
            ends = np.cumsum([len(batch.is_viral_C) for batch in batches])
            self._batches += zip(np.split(places, ends[:-1]), batches, strict=True)

    @torch.no_grad()
    def measure(self, score: Callable[[TrainingBatch], Tensor]) -> Measured:
        """Return how good the network is that gives these logits; alike in every process."""
        logits_C = torch.zeros(len(self.chunks), dtype=torch.float64, device=self._run.device)
        for places, batch in self._batches:
            logits_C[torch.from_numpy(places).to(logits_C.device)] = score(batch).double()
        logits = self._run.sum(logits_C).cpu().numpy()
        return Measured(self._measure_loss(logits), self._measure_auroc(logits))

    def _measure_loss(self, logits: Float64Array) -> float:
        class_C = self._corpus.chunk_class[self.chunks]
        is_viral_C = torch.from_numpy(self._corpus.is_viral[class_C].astype(np.float64))
        weight_C = torch.from_numpy(balance(class_C, self._corpus.is_viral))
        loss = functional.binary_cross_entropy_with_logits(
            torch.from_numpy(logits), is_viral_C, weight_C, reduction="sum"
        )
        return loss.item()

    def _measure_auroc(self, logits: Float64Array) -> float:
        fragments = join_chunks(self._corpus, self.chunks, logits)
        cluster_of_record = np.arange(len(self._corpus.record_ids))
        found = make_predictions(
            self._corpus, fragments, sigmoid(fragments.score), cluster_of_record, DEFAULT_THRESHOLD
        )
        return measure_metrics(found.select(found.weight > 0))["auroc"]


def _take(corpus: Corpus, chunks: Int64Array, seed: int) -> Int64Array:
    """Return at most `MAX_CHUNKS` of the chunks, in whole runs of neighbours."""
    if len(chunks) <= MAX_CHUNKS:
        return chunks
    keys = corpus.chunk_record[chunks] << 32 | corpus.chunk_number[chunks] // HELD_OUT_RUN
    _, run_of_chunk = np.unique(keys, return_inverse=True)
    rank_of_run = np.random.default_rng(seed).permutation(run_of_chunk.max() + 1)
    order = np.argsort(rank_of_run[run_of_chunk], kind="stable")
    return np.sort(chunks[order[:MAX_CHUNKS]])


def _read_batch(
    corpus: Corpus, store: FrameStore, chunks: Int64Array, collators: Collators
) -> TrainingBatch:
    rows = corpus.rows(chunks)
    num_stretches = corpus.num_frames[chunks]
    # All stretches of a chunk have its DNA. Of open frames the head reads the first one's.
    first_rows = rows[_first(num_stretches)]
    sequences = store.read_sequences("dna", first_rows), store.read_sequences("protein", rows)
    is_stretch_CN = np.arange(store.rule.max_rows) < num_stretches[:, None]
    is_viral_C = corpus.is_viral[corpus.chunk_class[chunks]]
    return TrainingBatch(
        *collate(collators, sequences),
        torch.from_numpy(store.stretch_features(rows)),
        torch.from_numpy(is_stretch_CN),
        torch.from_numpy(is_viral_C.astype(np.float32)),
    )


def _first(num_stretches: Int64Array) -> Int64Array:
    """Return the place of each chunk's first stretch among those of all chunks."""
    return np.cumsum(num_stretches) - num_stretches

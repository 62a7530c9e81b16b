"""Fits what the embeddings of its chunks add to the score of a record.

A logistic regression tells viral from cellular records of train by the mean embedding of their
chunks. The encoders have learned from train, so the logits of its records are surer than those of
new ones. So the regression does not see the logits: what its weights say is scaled to the spread of
the logits.

Shapes: N records of one length, E numbers of the embeddings of a chunk.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.chunk_embeddings import read_chunk_embeddings
from tools.mini.figures import Bools
from tools.mini.records import read_calls
from virnucpro.scoring.record_model import RecordModel
from virnucpro.sequences.frame_store import open_frame_store

_PENALTY = 0.01


def fit_record_model(run: Path, is_viral_N: Bools) -> RecordModel:
    """Return the weights that the records of a finished run give.

    Args:
        run: The output directory. The scores of its records are means of logits alone.
        is_viral_N: Whether each record is viral.
    """
    from sklearn.linear_model import LogisticRegression

    store, called = open_frame_store(run / "checkpoints" / "frames"), read_calls(run)
    # Chunks without a stretch have zeros, and do not count in a mean.
    sums_NE = np.add.reduceat(read_chunk_embeddings(run, store), store.record_first_chunk[:-1])
    known_N = called.has_call
    mean_NE = sums_NE[known_N] / called.num_chunks[known_N, None]
    middle_E, spread_E = mean_NE.mean(0), mean_NE.std(0)
    scaled_NE = (mean_NE - middle_E) / spread_E
    # scikit-learn adds up the losses, and weighs their sum by C.
    regression = LogisticRegression(C=1 / _PENALTY / len(scaled_NE), max_iter=1000)
    regression.fit(scaled_NE, is_viral_N[known_N])
    score_N = called.score[known_N]
    logit_N = np.log(score_N) - np.log1p(-score_N)
    said_N = regression.decision_function(scaled_NE)
    scale = logit_N.std() / said_N.std()
    weights_E = regression.coef_[0] / spread_E * scale
    constant = regression.intercept_[0] * scale - weights_E @ middle_E
    return RecordModel(
        tuple(float(f"{weight:.6g}") for weight in (*weights_E, constant)),
        most_chunks=int(np.diff(store.record_first_chunk).max()),
    )

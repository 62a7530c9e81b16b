"""Measures a model in training on chunks of the valid split, from which it does not learn.

Shapes: F frames, C chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.mini.figures import (
    balanced_predictions,
    calibrate,
    chunk_logits,
    figures_by_kind,
    fit_frame_calibration,
)
from tools.mini.genomes import Genomes
from tools.mini.model import MiniModel, pool
from tools.mini.sampling import Batch, Sampler

_FRAMES_PER_PASS = 2048


class ValidSet(NamedTuple):
    """The same chunks each time, and the names of their kinds."""

    batch: Batch
    kinds_C: npt.NDArray[np.str_]


def make_valid_set(genomes: Genomes, length_bp: int, word_bp: int, num_frames: int) -> ValidSet:
    """Return chunks of `genomes`, without errors; the same for the same arguments."""
    generator = torch.Generator(genomes.codes_N.device).manual_seed(length_bp)
    sampler = Sampler(genomes, length_bp, word_bp, generator)
    batch = sampler.draw_batch(num_frames, has_errors=False)
    return ValidSet(batch, np.array(sampler.kinds)[batch.kind_C.cpu().numpy()])


def measure_valid_set(model: MiniModel, valid_set: ValidSet) -> tuple[dict[str, float], Tensor]:
    """Return the figures of `figures_by_kind`, and the calibration that they are made with.

    Call it on a model in eval mode, without gradients.
    """
    batch, kinds_C = valid_set
    _, dna_FT, protein_FT = batch.frames
    pairs = zip(dna_FT.split(_FRAMES_PER_PASS), protein_FT.split(_FRAMES_PER_PASS), strict=True)
    logits_F2 = torch.cat(
        [
            model.head(pool(model.encode_dna(dna), dna, model.encode_proteins(protein), protein))
            for dna, protein in pairs
        ]
    ).float()
    chunk_F, is_viral_C = batch.frames.chunk_F, batch.is_viral_C
    with torch.enable_grad():
        calibration = fit_frame_calibration(logits_F2, chunk_F, is_viral_C)
    logits_C = chunk_logits(calibrate(logits_F2.cpu(), calibration), chunk_F.cpu(), len(kinds_C))
    scores_C = logits_C.sigmoid().numpy()
    predictions = balanced_predictions(scores_C, scores_C, is_viral_C.cpu().numpy())
    figures = figures_by_kind(predictions, kinds_C)
    return {name: round(value, 4) for name, value in figures.items()}, calibration

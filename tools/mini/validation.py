"""Measures models on records that they did not learn from: all of them, with a call or without.

Shapes: R records, C chunks of L bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tools.mini.figures import balanced_predictions, figures_by_kind
from tools.mini.genomes import Genomes
from tools.mini.model import MiniModel
from tools.mini.sampling import Sampler
from tools.mini.stretches import pack_proteins, read_chunks
from virnucpro.config import FrameRule

CHUNK_BP = 1000
"""Longer records are cut into chunks of so many bases, if nothing else is said."""

VALID_LENGTHS_BP = (300, 500, 1000, 3000)
_CHUNKS_PER_PASS = 1024


class ValidSet(NamedTuple):
    """Records of one length, cut into chunks.

    Attributes:
        codes_CL: uint8, the chunks; each record has as many.
        kinds_R: The kind of each record, `class/sub-class`.
    """

    codes_CL: Tensor
    kinds_R: npt.NDArray[np.str_]


def make_valid_set(
    genomes: Genomes, record_bp: int, num_chunks: int, chunk_bp: int = CHUNK_BP
) -> ValidSet:
    """Return records of `genomes` without errors; the same for the same arguments.

    Args:
        genomes: Where to draw from, balanced as for training.
        record_bp: The length of a record; at most a chunk, or a multiple of it.
        num_chunks: How many chunks all records have, about; at least a quarter as many records.
        chunk_bp: The length of a chunk.
    """
    generator = torch.Generator(genomes.codes_N.device).manual_seed(record_bp)
    sampler = Sampler(genomes, record_bp, generator)
    chunks_per_record = max(record_bp // chunk_bp, 1)
    num_records = max(num_chunks // chunks_per_record, num_chunks // 4)
    codes_RL, sequence_R = sampler.draw_chunks(sampler.weight_S, num_records)
    codes_CL = codes_RL.reshape(num_records * chunks_per_record, -1)
    return ValidSet(codes_CL, np.array(sampler.kind_of(sequence_R)))


@torch.no_grad()
def score_chunks(models: Sequence[MiniModel], codes_CL: Tensor, rule: FrameRule) -> Tensor:
    """Return float32 (C,): the mean of the models' logits, NaN for chunks without a stretch."""
    scored = []
    for part_CL in codes_CL.split(_CHUNKS_PER_PASS):
        tokens = read_chunks(part_CL, rule, models[0].sizes.word_bp)
        proteins = pack_proteins([tokens])
        logits = [model.score([tokens], proteins)[0].float() for model in models]
        answers = torch.stack(logits).mean(0)
        scored.append(answers.masked_fill(~tokens.is_stretch_CN.any(1), torch.nan))
    return torch.cat(scored) if scored else codes_CL.new_empty(0, dtype=torch.float32)


def measure_records(logits_C: Tensor, valid_set: ValidSet) -> dict[str, float]:
    """Return the figures of `figures_by_kind`, and the share of records without a call.

    A record's logit is the mean of its chunks'. Records without a call rank last.
    """
    logits_R = logits_C.view(len(valid_set.kinds_R), -1).nanmean(1).double().cpu()
    # In double precision no sigmoid is rounded to 1, which would make ranks equal.
    scores_R = torch.nan_to_num(logits_R.sigmoid(), nan=0.0).numpy()
    is_viral_R = np.char.startswith(valid_set.kinds_R, "viral/")
    predictions = balanced_predictions(scores_R, scores_R, is_viral_R)
    figures = figures_by_kind(predictions, valid_set.kinds_R)
    figures["none"] = float(logits_R.isnan().double().mean())
    return {name: round(value, 4) for name, value in figures.items()}

"""The network of a fine-tuning: two encoders and the head over chunks, trained together.

Shapes: C chunks, N stretches of a chunk (padded), F stretches of all chunks, P numbers of a protein
embedding, Q numbers of a DNA embedding.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from virnucpro.backend.interface import Alphabet, TokenBatch
from virnucpro.scoring.chunk_head import ChunkHead
from virnucpro.training.chunk_source import TrainingBatch


class Network(nn.Module):
    """Gives the logit of "viral" for each chunk, with gradients.

    Attributes:
        dna: The encoder of DNA.
        protein: The encoder of proteins.
        head: Reads the embeddings of both.
    """

    def __init__(
        self, dna: nn.Module, protein: nn.Module, head: ChunkHead, trained: Collection[Alphabet]
    ) -> None:
        super().__init__()
        self.dna = dna
        self.protein = protein
        self.head = head
        self._trained = frozenset(trained)

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Return float32 (C,): the logits of the chunks of a batch."""
        return self.judge(*self.embed(batch), batch)

    def embed(self, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return float32 (C, Q) and (F, P): the embeddings of chunks and of their stretches."""
        return self._embed("dna", batch.dna), self._embed("protein", batch.protein)

    def _embed(self, alphabet: Alphabet, batch: TokenBatch) -> Tensor:
        encoder = self.get_submodule(alphabet)
        if alphabet in self._trained:
            return cast(Tensor, encoder(batch))
        # A frozen encoder keeps nothing for a backward pass. Its kernels know no autocast.
        with torch.no_grad(), torch.autocast(batch.token_ids_T.device.type, enabled=False):
            return cast(Tensor, encoder(batch))

    def judge(self, dna_CQ: Tensor, protein_FP: Tensor, batch: TrainingBatch) -> Tensor:
        """Return float32 (C,): the logits, given the embeddings."""
        # The head computes in float32, as it does in a prediction.
        with torch.autocast(dna_CQ.device.type, enabled=False):
            logits_C: Tensor = self.head(
                dna_CQ,
                _spread(protein_FP, batch.is_stretch_CN),
                _spread(batch.features_FK, batch.is_stretch_CN),
                batch.is_stretch_CN,
            )
        return logits_C


def _spread(values_FD: Tensor, is_stretch_CN: Tensor) -> Tensor:
    """Return (C, N, D): a row of values where there is a stretch, and zeros elsewhere."""
    # Each place reads the stretch that it counts to: so the CPU never waits for a GPU here.
    index_CN = (is_stretch_CN.flatten().cumsum(0) - 1).clamp(min=0).view_as(is_stretch_CN)
    return values_FD[index_CN].masked_fill(~is_stretch_CN[..., None], 0)

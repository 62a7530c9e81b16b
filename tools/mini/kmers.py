"""The floor for any model: canonical 6-mer frequencies and a logistic regression on them.

Shapes: C chunks of L bases, D = 2,080 canonical 6-mers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from virnucpro.training.stretches import AMBIGUOUS

K = 6
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_BASES_PER_BLOCK = 500_000


def count_kmers(codes_CL: Tensor) -> Tensor:
    """Return float32 (C, D): the share of each 6-mer, counted together with its reverse complement.

    6-mers with an ambiguous letter are left out.
    """
    column_of_number = _canonical_columns().to(codes_CL.device)
    num_columns = int(column_of_number.max()) + 1
    blocks = []
    for block in codes_CL.split(max(1, _BASES_PER_BLOCK // codes_CL.shape[1])):
        kmers = block.long().unfold(1, K, 1)
        powers = 4 ** torch.arange(K - 1, -1, -1, device=block.device)
        is_whole = ~(kmers == AMBIGUOUS).any(2)
        column = torch.where(
            is_whole, column_of_number[(kmers.clamp(max=3) * powers).sum(2)], num_columns
        )
        counts = torch.zeros(len(block), num_columns + 1, device=block.device)
        counts.scatter_add_(1, column, torch.ones_like(column, dtype=counts.dtype))
        counts = counts[:, :num_columns]
        blocks.append(counts / counts.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(blocks)


class KmerBaseline:
    """A logistic regression on standardized 6-mer frequencies."""

    def __init__(self, features_CD: Tensor, is_viral_C: Tensor, penalty: float) -> None:
        self._mean_D = features_CD.mean(0)
        self._std_D = features_CD.std(0).clamp(min=1e-6)
        scaled_CD = (features_CD - self._mean_D) / self._std_D
        wanted_C = is_viral_C.to(scaled_CD.dtype)
        self._weight = torch.zeros(scaled_CD.shape[1] + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([self._weight], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits_C = scaled_CD @ self._weight[1:] + self._weight[0]
            loss = functional.binary_cross_entropy_with_logits(logits_C, wanted_C)
            loss = loss + penalty * self._weight[1:].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    @torch.no_grad()
    def score(self, features_CD: Tensor) -> Tensor:
        """Return the chance that each chunk is viral, (C,)."""
        scaled_CD = (features_CD - self._mean_D) / self._std_D
        return (scaled_CD @ self._weight[1:] + self._weight[0]).sigmoid()


def _canonical_columns() -> Tensor:
    """Return int64 (4**K,): the column of each 6-mer; its reverse complement has the same."""
    number = torch.arange(4**K)
    digits = torch.stack([number // 4**place % 4 for place in range(K)], 1)
    powers = 4 ** torch.arange(K - 1, -1, -1)
    other = ((3 - digits) * powers).sum(1)
    column: Tensor = torch.unique(torch.minimum(number, other), return_inverse=True)[1]
    return column

"""The encoder: fair-esm's own model over padded batches.

Shapes: B proteins in a batch, L tokens of the longest one, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virnucpro.backend.interface import Attention, TokenBatch
from virnucpro.backend.tensors import check_tensors
from virnucpro.backend.tokens import mark_tokens, mean_where, pad_tokens
from virnucpro.errors import UsageError
from virnucpro_fair_esm.tokens import load_alphabet
from virnucpro_fair_esm.weights import import_esm, read_checkpoint

# They predict contacts, and fair-esm publishes them in a file of their own.
_UNUSED = "contact_head."


class FairEsmEncoder(nn.Module):
    """ESM-2 of fair-esm, and the mean of its last layer over residues."""

    def __init__(self, model: Any, num_layers: int) -> None:
        super().__init__()
        self.model = model
        self.num_layers = num_layers

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): each protein's mean over its residues."""
        token_ids_BL = pad_tokens(batch, load_alphabet().padding_idx)
        output = self.model(token_ids_BL, repr_layers=[self.num_layers])
        # Without BOS, the first token, and EOS, the last one of each protein.
        return mean_where(output["representations"][self.num_layers], mark_tokens(batch, 1))


def load_model(
    path: Path, *, dtype: torch.dtype, device: torch.device, attention: Attention
) -> FairEsmEncoder:
    """Return the model with the weights at `path`.

    Raises:
        WeightsError: The file does not hold what the model needs.
        UsageError: `attention` is not `auto`: fair-esm has its own.
    """
    if attention != "auto":
        raise UsageError(f"attention {attention}: fair-esm has its own attention; use auto")
    checkpoint = read_checkpoint(path)
    model = import_esm().model.esm2.ESM2(
        num_layers=checkpoint.num_layers,
        embed_dim=checkpoint.embed_dim,
        attention_heads=checkpoint.num_heads,
        alphabet=load_alphabet(),
        token_dropout=checkpoint.token_dropout,
    )
    wanted = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if not name.startswith(_UNUSED)
    }
    check_tensors(path, checkpoint.tensors, wanted, allow_others=True)
    # Not strict, because the head that predicts contacts is not needed and may be missing.
    model.load_state_dict({name: checkpoint.tensors[name] for name in wanted}, strict=False)
    model = model.to(device, dtype).eval().requires_grad_(False)
    return FairEsmEncoder(model, checkpoint.num_layers).eval()

"""What `virnucpro benchmark` needs of ESM-2: weights of the published sizes, and its rivals.

Shapes: B sequences in a batch, L tokens of the longest one, D width.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from virnucpro.backend.interface import Reference, TokenBatch, Weights
from virnucpro.errors import UsageError
from virnucpro_esm2.model import Esm2, Esm2Config
from virnucpro_esm2.tokens import TOKENS
from virnucpro_esm2.weights import (
    FAIR_ESM,
    TRANSFORMERS,
    Checkpoint,
    Layout,
    read_checkpoint,
    source_names,
)

SIZES = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
    "3B": (36, 2560, 40),
    "15B": (48, 5120, 40),
}
"""Layers, width and heads of the published models."""

FAIR_ESM_BATCH_TOKENS = 2048
"""In a batch of the original VirNucPro and of the fork's v1.0."""

_PAD = TOKENS.index("<pad>")
_HINT = "needs the extra: pip install 'virnucpro[reference]'"

# Between the places where two matrices start among the random numbers: no multiple of a width.
_STRIDE = 1009


def make_config(num_layers: int = 6, embed_dim: int = 40, num_heads: int = 2) -> Esm2Config:
    """Return the settings of an ESM-2 of these sizes."""
    return Esm2Config(num_layers, embed_dim, num_heads, ffn_dim=4 * embed_dim)


def save_fair_esm(path: Path, config: Esm2Config, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors, under their whole names, as fair-esm publishes them; return `path`."""
    settings = Namespace(
        arch="esm2",
        encoder_layers=config.num_layers,
        encoder_embed_dim=config.embed_dim,
        encoder_attention_heads=config.num_heads,
        token_dropout=config.token_dropout,
    )
    torch.save({"cfg": {"model": settings}, "model": dict(tensors)}, path)
    return path


def write_random_weights(directory: Path, size: str) -> Path:
    """Write a `.pt` of one of the `SIZES` and return its path.

    Its matrices are windows onto the same random numbers, each from another place on, and
    `torch.save` writes those once: 0.1 GB for the 3B instead of 5.7.
    """
    config = make_config(*SIZES[size])
    generator = torch.Generator().manual_seed(0)
    names = source_names(config, FAIR_ESM)
    num_matrices = sum(map(len, names.values()))
    pools: dict[int, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for ours, parameter in Esm2(config, dtype=torch.float16).named_parameters():
        rows, *rest = parameter.shape
        shape = (rows // len(names[ours]), *rest)
        for key in names[ours]:
            if ours == "embed_tokens.weight":
                values = torch.randn(shape, generator=generator)
            elif rest:
                width = rest[0]
                if width not in pools:
                    largest = config.embed_dim * config.ffn_dim
                    pool = torch.randn(largest + _STRIDE * num_matrices, generator=generator)
                    pools[width] = pool.mul_(width**-0.5).half()
                start = _STRIDE * len(tensors)
                values = pools[width][start : start + shape[0] * width].view(shape)
            else:
                mean = float(ours.endswith("norm.weight"))
                values = torch.randn(shape, generator=generator).mul_(0.1).add_(mean)
            tensors[f"encoder.sentence_encoder.{key}"] = values.half()
    return save_fair_esm(directory / f"esm2_{size}_random.pt", config, tensors)


def list_references(weights: Weights, *, on_gpu: bool) -> list[Reference]:
    """Return fair-esm as the original used it, and transformers in its fastest way."""
    half = "bf16" if on_gpu else "fp32"
    load_half = functools.partial(_load_transformers, torch.bfloat16 if on_gpu else torch.float32)
    return [
        _make_reference(weights, "fair-esm", "fp32", FAIR_ESM_BATCH_TOKENS, _load_fair_esm),
        _make_reference(weights, "transformers EsmModel, sdpa", half, None, load_half),
    ]


_Load = Callable[[Esm2Config, torch.device], "tuple[nn.Module, Layout, Callable[..., Tensor]]"]


def _make_reference(
    weights: Weights, name: str, precision: str, batch_tokens: int | None, load: _Load
) -> Reference:
    def load_encoder(device: torch.device) -> PaddedEncoder:
        checkpoint = read_checkpoint(weights.path)
        model, layout, embed = load(checkpoint.config, device)
        model.load_state_dict(_name_tensors(checkpoint, layout), strict=False)
        return PaddedEncoder(model.eval().requires_grad_(False), embed)

    return Reference(name, precision, batch_tokens, load_encoder)


def _load_fair_esm(
    config: Esm2Config, device: torch.device
) -> tuple[nn.Module, Layout, Callable[..., Tensor]]:
    try:
        from esm.model.esm2 import ESM2
    except ImportError as error:
        raise UsageError(f"fair-esm {_HINT} ({error})") from error
    with device:
        model = ESM2(
            config.num_layers,
            config.embed_dim,
            config.num_heads,
            token_dropout=config.token_dropout,
        )
    last = config.num_layers

    def embed(token_ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        output: dict[str, dict[int, Tensor]] = model(token_ids_BL, repr_layers=[last])
        return output["representations"][last]

    return model, FAIR_ESM, embed


def _load_transformers(
    dtype: torch.dtype, config: Esm2Config, device: torch.device
) -> tuple[nn.Module, Layout, Callable[..., Tensor]]:
    try:
        from transformers import EsmConfig, EsmModel
    except ImportError as error:
        raise UsageError(f"transformers {_HINT} ({error})") from error
    settings = EsmConfig(
        vocab_size=len(TOKENS),
        mask_token_id=TOKENS.index("<mask>"),
        pad_token_id=_PAD,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_dim,
        layer_norm_eps=config.layer_norm_eps,
        token_dropout=config.token_dropout,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
    )
    settings._attn_implementation = "sdpa"
    with device:
        model: nn.Module = EsmModel(settings, add_pooling_layer=False)

    def embed(token_ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        hidden_BLD: Tensor = model(token_ids_BL, is_token_BL).last_hidden_state
        return hidden_BLD

    return model.to(dtype), TRANSFORMERS, embed


def _name_tensors(checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor]:
    """Return the checkpoint's tensors under the names of `layout`, without prefixes."""
    return {
        key: tensor
        for ours, keys in source_names(checkpoint.config, layout).items()
        for key, tensor in zip(keys, checkpoint.sources[ours], strict=True)
    }


class PaddedEncoder(nn.Module):
    """A model that reads padded tokens and writes hidden states, as an encoder of ours."""

    def __init__(self, model: nn.Module, embed: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.embed = embed

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): each protein's mean over its residues."""
        pieces = list(torch.split(batch.token_ids_T, batch.lengths_B.tolist()))
        token_ids_BL = pad_sequence(pieces, batch_first=True, padding_value=_PAD)
        hidden_BLD = self.embed(token_ids_BL, (token_ids_BL != _PAD).long())
        position_L = torch.arange(batch.max_length, device=token_ids_BL.device)
        is_residue_BL = (position_L > 0) & (position_L < batch.lengths_B[:, None] - 1)
        hidden_BLD = hidden_BLD.masked_fill(~is_residue_BL[..., None], 0)
        return hidden_BLD.sum(dim=1, dtype=torch.float32) / is_residue_BL.sum(1)[:, None]

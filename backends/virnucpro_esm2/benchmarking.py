"""What `virnucpro benchmark` uses to measure ESM-2: random weights and other implementations.

pyproject.toml registers this module under `virnucpro.benchmarks`.

Shapes: B sequences in a batch, L tokens of the longest one, D width.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from virnucpro.backend.interface import Encoder, Requirement, TokenBatch, Weights
from virnucpro.backend.tokens import mark_tokens, mean_where, pad_tokens
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

GPU_SIZES = ("3B", "650M")
"""The size that the published classifiers use, and the size that most other programs use."""

CPU_SIZES = ("8M",)

FAIR_ESM_BATCH_TOKENS = 2048
"""Tokens in a batch of the original VirNucPro and of the fork's v1.0."""

_PAD = TOKENS.index("<pad>")

# Matrices start this far apart among shared random numbers. No width is a multiple of it.
_STRIDE = 1009


def make_config(num_layers: int = 6, embed_dim: int = 40, num_heads: int = 2) -> Esm2Config:
    """Return the settings of an ESM-2 of these sizes."""
    return Esm2Config(num_layers, embed_dim, num_heads, ffn_dim=4 * embed_dim)


def make_random_tensors(
    config: Esm2Config, *, seed: int = 0, dtype: torch.dtype = torch.float32, shared: bool = False
) -> dict[str, Tensor]:
    """Return random parameters by our names, scaled so that activations are about 1.

    With `shared`, all matrices of one width are windows onto one vector of random numbers, and
    `torch.save` writes that vector once: 0.1 GB for the 3B model instead of 5.7 GB.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], scale: float, mean: float = 0.0) -> Tensor:
        return torch.empty(shape).normal_(mean, scale, generator=generator).to(dtype)

    shapes = {name: tuple(p.shape) for name, p in Esm2(config, dtype=dtype).named_parameters()}
    pools: dict[int, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            # Far enough from 1 and 0 that a norm or bias in the wrong place shows.
            tensors[name] = draw(shape, 0.1, float(name.endswith("norm.weight")))
        elif name.startswith("embed"):
            tensors[name] = draw(shape, 1.0)
        elif not shared:
            tensors[name] = draw(shape, shape[1] ** -0.5)
        else:
            rows, width = shape
            if width not in pools:
                max_size = config.embed_dim * config.ffn_dim
                pools[width] = draw((max_size + _STRIDE * len(shapes),), width**-0.5)
            # Other starts, so that no two matrices are equal and a swapped one shows.
            start = _STRIDE * len(tensors)
            tensors[name] = pools[width][start : start + rows * width].view(shape)
    return tensors


def name_parts(
    config: Esm2Config, tensors: Mapping[str, Tensor], layout: Layout
) -> dict[str, Tensor]:
    """Return parameters under the names of `layout`, without prefixes and without copying."""
    return {
        key: part
        for ours, keys in source_names(config, layout).items()
        for key, part in zip(keys, tensors[ours].chunk(len(keys)), strict=True)
    }


def save_fair_esm(path: Path, config: Esm2Config, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors with complete names in the published form of fair-esm, and return `path`."""
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
    """Write a `.pt` file of one of the `SIZES` and return its path."""
    config = make_config(*SIZES[size])
    tensors = make_random_tensors(config, dtype=torch.float16, shared=True)
    parts = name_parts(config, tensors, FAIR_ESM)
    named = {f"encoder.sentence_encoder.{key}": part for key, part in parts.items()}
    return save_fair_esm(directory / f"esm2_{size}_random.pt", config, named)


def list_references(
    weights: Weights, *, on_gpu: bool
) -> list[tuple[str, str, int | None, Callable[[torch.device], Encoder]]]:
    """Return fair-esm as the original uses it, and transformers in its fastest form."""
    half = torch.bfloat16 if on_gpu else torch.float32

    def load_fair_esm(device: torch.device) -> PaddedEncoder:
        return _make_fair_esm(read_checkpoint(weights.path), device)

    def load_transformers(device: torch.device) -> PaddedEncoder:
        return _make_transformers(read_checkpoint(weights.path), device, half)

    return [
        ("fair-esm", "fp32", FAIR_ESM_BATCH_TOKENS, load_fair_esm),
        ("transformers EsmModel, sdpa", "bf16" if on_gpu else "fp32", None, load_transformers),
    ]


class PaddedEncoder(nn.Module):
    """A model that reads padded tokens and returns hidden states, as an encoder."""

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        layout: Layout,
        embed: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        names = source_names(checkpoint.config, layout)
        state = {
            key: tensor
            for ours, keys in names.items()
            for key, tensor in zip(keys, checkpoint.sources[ours], strict=True)
        }
        # Not strict: heads that an embedding does not need have no tensors here.
        model.load_state_dict(state, strict=False)
        self.model = model.eval().requires_grad_(False)
        self.embed = embed

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): each protein's mean over its residues."""
        token_ids_BL = pad_tokens(batch, _PAD)
        hidden_BLD = self.embed(token_ids_BL, (token_ids_BL != _PAD).long())
        return mean_where(hidden_BLD, mark_tokens(batch, 1))


def _make_fair_esm(checkpoint: Checkpoint, device: torch.device) -> PaddedEncoder:
    try:
        from esm.model.esm2 import ESM2
    except ImportError as error:
        raise _explain_missing("fair-esm", error) from error
    config = checkpoint.config
    last = config.num_layers
    with device:
        model = ESM2(last, config.embed_dim, config.num_heads, token_dropout=config.token_dropout)

    def embed(token_ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        output: dict[str, dict[int, Tensor]] = model(token_ids_BL, repr_layers=[last])
        return output["representations"][last]

    return PaddedEncoder(model, checkpoint, FAIR_ESM, embed)


def _make_transformers(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> PaddedEncoder:
    try:
        from transformers import EsmConfig, EsmModel
    except ImportError as error:
        raise _explain_missing("transformers", error) from error
    config = checkpoint.config
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
    # The fastest of those that run everywhere, so that the comparison is fair.
    settings._attn_implementation = "sdpa"
    with device:
        model: nn.Module = EsmModel(settings, add_pooling_layer=False)
    model.to(dtype)

    def embed(token_ids_BL: Tensor, is_token_BL: Tensor) -> Tensor:
        hidden_BLD: Tensor = model(token_ids_BL, is_token_BL).last_hidden_state
        return hidden_BLD

    return PaddedEncoder(model, checkpoint, TRANSFORMERS, embed)


def _explain_missing(package: str, error: ImportError) -> UsageError:
    return UsageError(f"this {Requirement(package, 'virnucpro[reference]').explain(error)}")

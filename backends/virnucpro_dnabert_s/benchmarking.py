"""What `virnucpro benchmark` uses to measure DNABERT-S: random weights, and the original's way.

pyproject.toml registers this module under `virnucpro.benchmarks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor

from virnucpro.backend.interface import Encoder, Weights
from virnucpro_dnabert_s.model import ModelConfig
from virnucpro_dnabert_s.weights import load_model, make_meta_model, published_name

SPECIAL_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]

SIZES = {"small": (4, 256, 8, 1024, 1024), "117M": (12, 768, 12, 3072, 4096)}
"""Layers, width, heads, width of the feed-forward, vocabulary; `117M` is the published model."""

GPU_SIZES = ("117M",)
CPU_SIZES = ("small",)


def make_config(
    num_layers: int = 2,
    width: int = 48,
    num_heads: int = 12,
    feed_forward: int = 96,
    vocab_size: int = 256,
) -> ModelConfig:
    """Return the settings of a DNABERT-S of these sizes."""
    # Two types of tokens, as in the published files. The model uses the first alone.
    return ModelConfig(vocab_size, 2, width, num_layers, num_heads, feed_forward, 1e-12)


def make_random_tensors(config: ModelConfig, *, seed: int = 0) -> dict[str, Tensor]:
    """Return random float32 tensors by their published names, the pooler's included."""
    width = config.hidden_size
    shapes = {
        published_name(name): tuple(tensor.shape)
        for name, tensor in make_meta_model(config).state_dict().items()
    }
    shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    return draw_tensors(shapes, seed)


def draw_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Return random tensors of these shapes, scaled so that activations are about 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            # A sum of n products of random numbers grows with the root of n.
            tensors[name] = values / shape[1] ** 0.5
        else:
            # Far enough from 1 and 0 that a norm or bias in the wrong place shows.
            tensors[name] = values * 0.1 + (1.0 if "norm.weight" in name.lower() else 0.0)
    return tensors


def save_model(
    directory: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    seed: int = 0,
    safetensors: bool = False,
) -> Path:
    """Write config.json, a random tokenizer.json and `tensors` to `directory`, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    # The published file has the wrong padding token too.
    settings = {"model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0, **asdict(config)}
    (directory / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    _make_tokenizer(config.vocab_size, seed).save(str(directory / "tokenizer.json"))
    if safetensors:
        save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    else:
        # As the published model.
        torch.save(dict(tensors), directory / "pytorch_model.bin")
    return directory


def write_random_weights(directory: Path, size: str) -> Path:
    """Write a directory of one of the `SIZES`, as published, and return it."""
    config = make_config(*SIZES[size])
    return save_model(directory, config, make_random_tensors(config))


def list_references(
    weights: Weights, *, on_gpu: bool
) -> list[tuple[str, str, int | None, Callable[[torch.device], Encoder]]]:
    """Return the way of the original VirNucPro: float32, and one frame after the other."""

    def load(device: torch.device) -> Encoder:
        return load_model(weights.path, dtype=torch.float32, device=device, attention="eager")

    return [("one frame at a time", "fp32", 1, load)]


def _make_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Return a byte-pair tokenizer that is trained on random DNA.

    It has the structure of the published tokenizer, with truncation and padding to 2,000 tokens.
    """
    rng = np.random.default_rng(seed)
    bases = rng.choice(np.frombuffer(b"ACGT", dtype=np.uint8), size=(vocab_size, 500))
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=list("ACGT"),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row.tobytes().decode() for row in bases), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.enable_truncation(2000)
    tokenizer.enable_padding(length=2000, pad_id=3, pad_token="[PAD]")
    return tokenizer

"""What `virnucpro benchmark` needs of DNABERT-S: random weights, and the original's way."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from virnucpro.backend.interface import Reference, Weights
from virnucpro_dnabert_s.weights import load_model

SPECIAL_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


@dataclass(frozen=True)
class Sizes:
    """The model's sizes; small by default."""

    num_layers: int = 2
    width: int = 48
    num_heads: int = 12
    feed_forward: int = 96
    vocab_size: int = 256


REAL_SIZES = Sizes(num_layers=12, width=768, num_heads=12, feed_forward=3072, vocab_size=4096)


SMALL_SIZES = Sizes(num_layers=4, width=256, num_heads=8, feed_forward=1024, vocab_size=1024)
SIZES = {"small": SMALL_SIZES, "117M": REAL_SIZES}


def list_references(weights: Weights) -> list[Reference]:
    """Return the original VirNucPro's way: float32, one frame after the other."""
    load = functools.partial(load_model, weights.path, dtype=torch.float32, attention="eager")
    return [Reference("one frame at a time", "fp32", 1, lambda device: load(device=device))]


def write_random_weights(directory: Path, size: str) -> Path:
    """Write a directory of one of the `SIZES`, as published, and return it."""
    sizes = SIZES[size]
    return save_model(directory, sizes, make_tensors(sizes, seed=0), seed=0)


def save_model(
    directory: Path,
    sizes: Sizes,
    tensors: dict[str, torch.Tensor],
    *,
    seed: int,
    safetensors: bool = False,
) -> Path:
    """Write config.json, a tokenizer.json by `seed` and `tensors` to `directory`; return it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(_make_config(sizes), indent=2) + "\n")
    _make_tokenizer(sizes.vocab_size, seed).save(str(directory / "tokenizer.json"))
    if safetensors:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors, directory / "pytorch_model.bin")
    return directory


def make_tensors(sizes: Sizes, seed: int) -> dict[str, torch.Tensor]:
    """Return float32 tensors under DNABERT-S's published names, scaled to keep activations O(1)."""
    width, inner = sizes.width, sizes.feed_forward
    shapes = {
        "embeddings.word_embeddings.weight": (sizes.vocab_size, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for layer in range(sizes.num_layers):
        prefix = f"encoder.layer.{layer}"
        shapes |= {
            f"{prefix}.attention.self.Wqkv.weight": (3 * width, width),
            f"{prefix}.attention.self.Wqkv.bias": (3 * width,),
            f"{prefix}.attention.output.dense.weight": (width, width),
            f"{prefix}.attention.output.dense.bias": (width,),
            f"{prefix}.attention.output.LayerNorm.weight": (width,),
            f"{prefix}.attention.output.LayerNorm.bias": (width,),
            f"{prefix}.mlp.gated_layers.weight": (2 * inner, width),
            f"{prefix}.mlp.wo.weight": (width, inner),
            f"{prefix}.mlp.wo.bias": (width,),
            f"{prefix}.mlp.layernorm.weight": (width,),
            f"{prefix}.mlp.layernorm.bias": (width,),
        }
    shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    return make_numbers(shapes, seed)


def make_numbers(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Return seeded random tensors of these shapes, scaled to keep activations O(1)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            tensors[name] = values / math.sqrt(shape[1])
        else:
            # Far enough from 1 and 0 that a norm or bias in the wrong place shows.
            tensors[name] = values * 0.1 + (1.0 if "norm.weight" in name.lower() else 0.0)
    return tensors


def _make_config(sizes: Sizes) -> dict[str, Any]:
    """Return what config.json holds; its pad_token_id is wrong, as in the published one."""
    return {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "layer_norm_eps": 1e-12,
        "num_attention_heads": sizes.num_heads,
        "num_hidden_layers": sizes.num_layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": sizes.vocab_size,
    }


def _make_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """Return a byte-pair tokenizer trained on random DNA, built as the published one is.

    It stores the published one's truncation and padding to 2,000 tokens too.
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

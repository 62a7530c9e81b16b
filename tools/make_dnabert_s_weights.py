"""Writes seeded random weights in the layout of DNABERT-S or DNABERT-2, of any size.

They compute nothing of use: they are for tests, demonstrations, and timing the real size.

    python tools/make_dnabert_s_weights.py DIRECTORY --layers 2 --width 48 --heads 12
    python tools/make_dnabert_s_weights.py DIRECTORY --real-size
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

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


def write_weights(
    directory: Path,
    sizes: Sizes = Sizes(),
    *,
    seed: int = 0,
    layout: str = "dnabert-s",
    safetensors: bool = False,
) -> Path:
    """Write config.json, tokenizer.json and the tensors to `directory`, and return it.

    Args:
        directory: Made if it is not there.
        sizes: Of the model.
        seed: The same seed gives the same values in either layout and file format.
        layout: `dnabert-s` (a pooler) or `dnabert-2` (the prefix `bert.`, and `cls.*`).
        safetensors: Write model.safetensors instead of pytorch_model.bin.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = make_tensors(sizes, seed)
    if layout == "dnabert-2":
        tensors = as_dnabert_2(tensors, sizes, seed)
    (directory / "config.json").write_text(json.dumps(make_config(sizes), indent=2) + "\n")
    make_tokenizer(sizes.vocab_size, seed).save(str(directory / "tokenizer.json"))
    if safetensors:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors, directory / "pytorch_model.bin")
    return directory


def make_config(sizes: Sizes) -> dict[str, Any]:
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
    return _fill(shapes, seed)


def as_dnabert_2(
    tensors: dict[str, torch.Tensor], sizes: Sizes, seed: int
) -> dict[str, torch.Tensor]:
    """Return `tensors` in DNABERT-2's layout, with a made-up language model's head."""
    width, head = sizes.width, "cls.predictions"
    shapes = {
        f"{head}.transform.dense.weight": (width, width),
        f"{head}.transform.dense.bias": (width,),
        f"{head}.transform.LayerNorm.weight": (width,),
        f"{head}.transform.LayerNorm.bias": (width,),
        f"{head}.decoder.weight": (sizes.vocab_size, width),
        f"{head}.decoder.bias": (sizes.vocab_size,),
    }
    body = {f"bert.{name}": tensors[name] for name in tensors if not name.startswith("pooler.")}
    return body | _fill(shapes, seed + 1)


def _fill(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
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


def make_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
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


def main() -> None:
    """Write the directory that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=Sizes.num_layers)
    parser.add_argument("--width", type=int, default=Sizes.width)
    parser.add_argument("--heads", type=int, default=Sizes.num_heads)
    parser.add_argument("--feed-forward", type=int, default=Sizes.feed_forward)
    parser.add_argument("--vocabulary", type=int, default=Sizes.vocab_size)
    parser.add_argument("--real-size", action="store_true", help="the published model's sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=("dnabert-s", "dnabert-2"), default="dnabert-s")
    parser.add_argument("--safetensors", action="store_true")
    args = parser.parse_args()
    sizes = Sizes(args.layers, args.width, args.heads, args.feed_forward, args.vocabulary)
    write_weights(
        args.directory,
        REAL_SIZES if args.real_size else sizes,
        seed=args.seed,
        layout=args.layout,
        safetensors=args.safetensors,
    )
    print(f"{args.directory}: random weights, of no use but for testing")


if __name__ == "__main__":
    main()

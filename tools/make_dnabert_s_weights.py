"""Writes seeded random weights in the layout of DNABERT-S or DNABERT-2, of any size.

They compute nothing of use: they are for tests, demonstrations, and timing the real size.

    python tools/make_dnabert_s_weights.py DIRECTORY --layers 2 --width 48 --heads 12
    python tools/make_dnabert_s_weights.py DIRECTORY --real-size
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from virnucpro_dnabert_s.benchmarking import (
    REAL_SIZES,
    Sizes,
    make_numbers,
    make_tensors,
    save_model,
)

TINY_SIZES = Sizes()


def write_weights(
    directory: Path,
    sizes: Sizes = TINY_SIZES,
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
    tensors = make_tensors(sizes, seed)
    if layout == "dnabert-2":
        tensors = as_dnabert_2(tensors, sizes, seed)
    return save_model(directory, sizes, tensors, seed=seed, safetensors=safetensors)


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
    return body | make_numbers(shapes, seed + 1)


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

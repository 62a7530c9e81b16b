"""Writes random weights in the form of DNABERT-S or DNABERT-2, of any size.

The weights are useful for tests and for timing, but the model has learned nothing. The same seed
gives the same numbers.

    python -m tools.make_dnabert_s_weights w/dnabert_s --real-size
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from virnucpro_dnabert_s.benchmarking import (
    SIZES,
    draw_tensors,
    make_config,
    make_random_tensors,
    save_model,
)
from virnucpro_dnabert_s.model import ModelConfig


def write_weights(
    directory: Path,
    config: ModelConfig | None = None,
    *,
    seed: int = 0,
    layout: str = "dnabert-s",
    safetensors: bool = False,
) -> Path:
    """Write config.json, tokenizer.json and the tensors to `directory`, and return it.

    Args:
        directory: Created if it is missing.
        config: The sizes of the model; tiny by default.
        seed: Decides the numbers, in each layout and form of file.
        layout: `dnabert-s` (a pooler) or `dnabert-2` (the prefix `bert.`, and a head `cls.*`).
        safetensors: Write model.safetensors instead of pytorch_model.bin.
    """
    config = config or make_config()
    tensors = make_random_tensors(config, seed=seed)
    if layout == "dnabert-2":
        tensors = as_dnabert_2(tensors, config, seed)
    return save_model(directory, config, tensors, seed=seed, safetensors=safetensors)


def as_dnabert_2(
    tensors: dict[str, torch.Tensor], config: ModelConfig, seed: int
) -> dict[str, torch.Tensor]:
    """Return `tensors` in DNABERT-2's layout, with a random head of a language model."""
    width, head = config.hidden_size, "cls.predictions"
    shapes = {
        f"{head}.transform.dense.weight": (width, width),
        f"{head}.transform.dense.bias": (width,),
        f"{head}.transform.LayerNorm.weight": (width,),
        f"{head}.transform.LayerNorm.bias": (width,),
        f"{head}.decoder.weight": (config.vocab_size, width),
        f"{head}.decoder.bias": (config.vocab_size,),
    }
    body = {f"bert.{name}": tensors[name] for name in tensors if not name.startswith("pooler.")}
    return body | draw_tensors(shapes, seed + 1)


def main() -> None:
    """Write the directory that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--real-size", action="store_true", help="the sizes of the published model")
    args = parser.parse_args()
    write_weights(args.directory, make_config(*SIZES["117M"]) if args.real_size else None)


if __name__ == "__main__":
    main()

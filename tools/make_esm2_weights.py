"""Writes random weights of an ESM-2 of any size, in each of the published forms.

The weights are useful for tests and for timing, but the model has learned nothing. The same seed
gives the same numbers.

    python -m tools.make_esm2_weights w/esm2_t36_3B_UR50D.pt --preset 3B
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from virnucpro_esm2.benchmarking import (
    SIZES,
    make_config,
    make_random_tensors,
    name_parts,
    save_fair_esm,
)
from virnucpro_esm2.model import Esm2, Esm2Config, make_empty_model
from virnucpro_esm2.rotary import default_frequencies
from virnucpro_esm2.tokens import TOKENS
from virnucpro_esm2.weights import FAIR_ESM, TRANSFORMERS

from virnucpro.backend.interface import Attention
from virnucpro.kernels import float8

CPU = torch.device("cpu")


def make_random_model(
    config: Esm2Config,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    attention: Attention = "sdpa",
) -> Esm2:
    """Return a model with random weights on `device`, always the same."""
    model = make_empty_model(config, dtype=dtype, device=device, attention=attention)
    for name, tensor in make_random_tensors(config).items():
        model.get_parameter(name).copy_(tensor)
    if dtype == float8.DTYPE:
        model.quantize()
    return model


def write_fair_esm(
    path: Path,
    config: Esm2Config,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    contact_regression: bool = False,
) -> Path:
    """Write a fair-esm `.pt` with the head and the rotary frequencies, and return its path.

    Args:
        path: Where to write. fair-esm itself reads the file only if its name starts with `esm2`.
        config: The model's sizes.
        seed: Decides the numbers.
        dtype: The type of the tensors on disk; the published files are float16.
        contact_regression: Also write `NAME-contact-regression.pt` beside it, as published.
    """
    tensors = name_parts(config, make_random_tensors(config, seed=seed), FAIR_ESM)
    for number in range(config.num_layers):
        key = FAIR_ESM.layer.format(number) + FAIR_ESM.rotary
        tensors[key] = default_frequencies(config.head_dim)
    state = {f"encoder.sentence_encoder.{key}": value for key, value in tensors.items()}
    state |= {f"encoder.lm_head.{key}": value for key, value in _make_lm_head(tensors).items()}
    save_fair_esm(path, config, {key: value.to(dtype, copy=True) for key, value in state.items()})
    if contact_regression:
        head = "contact_head.regression"
        num_maps = config.num_layers * config.num_heads
        regression = {f"{head}.weight": torch.zeros(1, num_maps), f"{head}.bias": torch.zeros(1)}
        torch.save({"model": regression}, path.with_name(f"{path.stem}-contact-regression.pt"))
    return path


def write_transformers(
    directory: Path,
    config: Esm2Config,
    *,
    dtype: torch.dtype = torch.float32,
    safetensors: bool = True,
    num_shards: int = 1,
) -> Path:
    """Write a transformers directory of an `EsmForMaskedLM` without its head, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_dim,
        "layer_norm_eps": config.layer_norm_eps,
        "token_dropout": config.token_dropout,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "vocab_size": len(TOKENS),
        "mask_token_id": TOKENS.index("<mask>"),
        "pad_token_id": TOKENS.index("<pad>"),
    }
    _write_json(directory / "config.json", settings)
    tensors = name_parts(config, make_random_tensors(config), TRANSFORMERS)
    state = {f"esm.{key}": value.to(dtype, copy=True) for key, value in tensors.items()}
    name = "model.safetensors" if safetensors else "pytorch_model.bin"
    stem, ending = name.split(".")
    keys = list(state)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        shard = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.{ending}"
        path = directory / (shard if num_shards > 1 else name)
        part = {key: state[key] for key in keys[number::num_shards]}
        weight_map |= dict.fromkeys(part, path.name)
        if safetensors:
            save_file(part, path, metadata={"format": "pt"})
        else:
            torch.save(part, path)
    if num_shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        _write_json(directory / f"{name}.index.json", index)
    return directory


def _make_lm_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    embedding = tensors["embed_tokens.weight"]
    num_tokens, dim = embedding.shape
    return {
        "weight": embedding,
        "bias": torch.zeros(num_tokens),
        "dense.weight": torch.eye(dim),
        "dense.bias": torch.zeros(dim),
        "layer_norm.weight": torch.ones(dim),
        "layer_norm.bias": torch.zeros(dim),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the fair-esm file that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="the .pt file to write")
    parser.add_argument("--preset", choices=SIZES, default="8M", help="a published size")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    args = parser.parse_args()
    args.path.parent.mkdir(parents=True, exist_ok=True)
    write_fair_esm(args.path, make_config(*SIZES[args.preset]), dtype=getattr(torch, args.dtype))


if __name__ == "__main__":
    main()

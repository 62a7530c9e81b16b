"""Write ESM-2 weights of any size with random numbers: for tests, benchmarks and the demo.

The numbers are seeded and of a sensible scale (activations of about one, attention that is neither
flat nor a spike), but the model has learned nothing.

    python -m tools.make_esm2_weights --layers 6 --dim 320 --heads 20 esm2_random.pt
    python -m tools.make_esm2_weights --layout transformers --shards 2 esm2_random/
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from virnucpro_esm2.benchmarking import SIZES, make_config, save_fair_esm
from virnucpro_esm2.model import Esm2, Esm2Config, default_frequencies, make_empty_model
from virnucpro_esm2.tokens import TOKENS
from virnucpro_esm2.weights import FAIR_ESM, TRANSFORMERS, Layout, source_names

from virnucpro.backend.interface import Attention
from virnucpro.kernels import float8

CPU = torch.device("cpu")


def make_random_model(
    config: Esm2Config,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    attention: Attention = "sdpa",
) -> Esm2:
    """Return a model with random weights, made on `device` itself; the same for the same seed."""
    model = make_empty_model(config, dtype=dtype, device=device, attention=attention)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            scale = 1.0 if name.startswith("embed") else parameter.shape[1] ** -0.5
            parameter.normal_(0.0, scale, generator=generator)
        else:
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean, 0.1, generator=generator)
    if dtype == float8.DTYPE:
        model.quantize()
    return model


def export_tensors(model: Esm2, layout: Layout) -> dict[str, Tensor]:
    """Return the model's tensors under the names of `layout`, without prefixes."""
    parameters = dict(model.named_parameters())
    return {
        key: part.detach().clone()
        for ours, keys in source_names(model.config, layout).items()
        for key, part in zip(keys, parameters[ours].chunk(len(keys)), strict=True)
    }


def write_fair_esm(
    path: Path,
    config: Esm2Config,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    contact_regression: bool = False,
) -> Path:
    """Write and return a fair-esm `.pt`, language-model head and rotary frequencies included.

    Args:
        path: Where to write; fair-esm itself reads it only if its name starts with `esm2`.
        config: The model's sizes.
        seed: Decides the numbers.
        dtype: Of the tensors on disk; the published files are float16.
        contact_regression: Also write `NAME-contact-regression.pt` beside it, as published.
    """
    tensors = export_tensors(make_random_model(config, seed=seed), FAIR_ESM)
    for number in range(config.num_layers):
        key = FAIR_ESM.layer.format(number) + FAIR_ESM.rotary
        tensors[key] = default_frequencies(config.head_dim)
    state = {f"encoder.sentence_encoder.{key}": value for key, value in tensors.items()}
    state |= {f"encoder.lm_head.{key}": value for key, value in _make_lm_head(tensors).items()}
    save_fair_esm(path, config, {key: value.to(dtype) for key, value in state.items()})
    if contact_regression:
        torch.save({"model": _make_contact_head(config)}, _contact_regression_path(path))
    return path


def write_transformers(
    directory: Path,
    config: Esm2Config,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    safetensors: bool = True,
    num_shards: int = 1,
) -> Path:
    """Write and return a transformers directory of an `EsmForMaskedLM` without its head."""
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
    tensors = export_tensors(make_random_model(config, seed=seed), TRANSFORMERS)
    state = {f"esm.{key}": value.to(dtype) for key, value in tensors.items()}
    name = "model.safetensors" if safetensors else "pytorch_model.bin"
    stem, ending = name.split(".")
    keys, weight_map = list(state), {}
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


def _make_contact_head(config: Esm2Config) -> dict[str, Tensor]:
    return {
        "contact_head.regression.weight": torch.zeros(1, config.num_layers * config.num_heads),
        "contact_head.regression.bias": torch.zeros(1),
    }


def _contact_regression_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-contact-regression.pt")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, help="the .pt file or the directory to write")
    parser.add_argument("--preset", choices=SIZES, help="a published size, instead of the next 3")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--layout", choices=("fair-esm", "transformers"), default="fair-esm")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--bin", action="store_true", help="pytorch_model.bin, not safetensors")
    parser.add_argument("--shards", type=int, default=1, help="files of a transformers directory")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = make_config(*SIZES.get(args.preset, (args.layers, args.dim, args.heads)))
    dtype = getattr(torch, args.dtype)
    if args.layout == "fair-esm":
        write_fair_esm(args.path, config, seed=args.seed, dtype=dtype, contact_regression=True)
    else:
        write_transformers(
            args.path,
            config,
            seed=args.seed,
            dtype=dtype,
            safetensors=not args.bin,
            num_shards=args.shards,
        )


if __name__ == "__main__":
    main()

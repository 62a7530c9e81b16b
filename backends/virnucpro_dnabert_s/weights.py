"""Finds, checks and loads the published files of DNABERT-S and DNABERT-2.

A directory holds config.json, tokenizer.json and the tensors in model.safetensors or
pytorch_model.bin, in shards or not. DNABERT-2's tensors have the prefix `bert.` and a language
model's head `cls.*`; DNABERT-S has neither, but a pooler.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from virnucpro.backend.interface import Attention, Weights
from virnucpro.backend.weights import (
    digest_files,
    find_weight_files,
    locate_weights,
    read_json,
    read_tensors,
)
from virnucpro.errors import UsageError, WeightsError
from virnucpro.kernels import can_fuse, onednn
from virnucpro_dnabert_s.model import AttentionKernel, DnabertS, ModelConfig
from virnucpro_dnabert_s.tokens import read_tokenizer

HUB_PATTERNS = ("config.json", "tokenizer.json", "model*.safetensors*", "pytorch_model*.bin*")

# Parts of the published models that the embedding does not pass through.
UNUSED_PREFIXES = ("pooler.", "cls.")

PUBLISHED_MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "qkv": "attention.self.Wqkv",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "gate_and_value": "mlp.gated_layers",
    "mlp_out": "mlp.wo",
    "mlp_norm": "mlp.layernorm",
}


class WeightFiles(NamedTuple):
    """The files of one published model."""

    config: Path
    tokenizer: Path
    tensors: list[Path]


def open_weights(location: str) -> Weights:
    """Return what is at `location` after checking every size, without loading it.

    Raises:
        WeightsError: Nothing there, unreadable, unsafe, or of another architecture.
    """
    path = locate_weights(location, HUB_PATTERNS)
    files = find_files(path)
    config = read_config(files.config)
    num_tokens = read_tokenizer(files.tokenizer).get_vocab_size()
    if num_tokens > config.vocab_size:
        raise WeightsError(
            f"{files.tokenizer}: has {num_tokens} tokens, but the model's vocab_size is "
            f"{config.vocab_size}; give a directory whose files belong together"
        )
    read_state_dict(files, make_meta_model(config))
    return Weights(
        location=location,
        path=path,
        identity=digest_files([*files.tensors, files.config, files.tokenizer]),
        embedding_dim=config.hidden_size,
    )


def load_model(
    path: Path, *, dtype: torch.dtype, device: torch.device, attention: Attention
) -> DnabertS:
    """Return the model in `path` on `device`, its parameters in `dtype`, ready for inference.

    Raises:
        WeightsError: The files do not hold what the model needs.
        UsageError: `flash` without flash-attn, a GPU, or half precision.
    """
    files = find_files(path)
    config = read_config(files.config)
    kernel = choose_kernel(attention, config, dtype, device)
    model = make_meta_model(config, kernel)
    tensors = read_state_dict(files, model)
    # A copy even where nothing changes: the file stays mapped otherwise, and may be replaced.
    model.load_state_dict(
        {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()},
        assign=True,
    )
    model.requires_grad_(False)
    onednn.pack_where_it_pays(model, attention, dtype, device)
    return model.eval()


def choose_kernel(
    attention: Attention, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> AttentionKernel:
    """Return how attention is computed; `auto` is our own kernel where it runs, else SDPA.

    Raises:
        UsageError: `flash` without flash-attn, a GPU, or half precision.
    """
    if attention == "auto":
        has_even_heads = config.hidden_size % (2 * config.num_attention_heads) == 0
        return "fused" if has_even_heads and can_fuse(dtype, device) else "sdpa"
    if attention == "flash":
        if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
            raise UsageError(
                f"--attention flash: flash-attn computes in fp16 or bf16 on a GPU, not in {dtype} "
                f"on {device.type}; use --attention sdpa"
            )
        try:
            import flash_attn  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"--attention flash: DNABERT-S needs the package flash-attn for it ({error}); "
                "install it, or use --attention sdpa"
            ) from error
    return attention


def find_files(path: Path) -> WeightFiles:
    """Return the files of the model in the directory `path`, or beside the weights file `path`.

    Raises:
        WeightsError: One of them is missing.
    """
    directory = path if path.is_dir() else path.parent
    config, tokenizer = directory / "config.json", directory / "tokenizer.json"
    missing = [file.name for file in (config, tokenizer) if not file.is_file()]
    if missing:
        raise WeightsError(
            f"{directory}: holds no {' and no '.join(missing)}; DNABERT-S needs config.json, "
            "tokenizer.json and the weights in one directory, as published"
        )
    return WeightFiles(config, tokenizer, find_weight_files(path) if path.is_dir() else [path])


def read_config(path: Path) -> ModelConfig:
    """Return the sizes in a config.json.

    Raises:
        WeightsError: It is another kind of model's, or a size is missing or makes no sense.
    """
    values = read_json(path)
    model_type = values.get("model_type", "bert")
    if model_type != "bert":
        raise WeightsError(
            f"{path}: describes a model of type {model_type!r}; DNABERT-S's is of type 'bert'"
        )
    sizes: dict[str, Any] = {field.name: values.get(field.name) for field in fields(ModelConfig)}
    eps = sizes.pop("layer_norm_eps")
    wrong = {name: size for name, size in sizes.items() if type(size) is not int or size < 1}
    if wrong or not isinstance(eps, float):
        raise WeightsError(
            f"{path}: sizes are missing or wrong: {wrong or {'layer_norm_eps': eps}}"
        )
    config = ModelConfig(**sizes, layer_norm_eps=eps)
    if config.hidden_size % config.num_attention_heads:
        raise WeightsError(
            f"{path}: hidden_size {config.hidden_size} is no multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    return config


def make_meta_model(config: ModelConfig, attention: AttentionKernel = "sdpa") -> DnabertS:
    """Return the model without storage: its tensors have shapes only."""
    with torch.device("meta"):
        return DnabertS(config, attention)


def read_state_dict(files: WeightFiles, model: DnabertS) -> dict[str, torch.Tensor]:
    """Return the tensors of `model`, memory-mapped from the files and under the model's names.

    Raises:
        WeightsError: Tensors are missing, of another architecture, or of another shape.
    """
    found = {
        name.removeprefix("bert."): tensor
        for path in files.tensors
        for name, tensor in read_tensors(path).items()
    }
    found = {name: found[name] for name in found if not name.startswith(UNUSED_PREFIXES)}
    wanted = {published_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    missing, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or strange:
        raise WeightsError(
            f"{files.tensors[0]}: not a DNABERT-S or DNABERT-2 of the sizes in config.json: "
            f"{_some('missing', missing)}, {_some('of another architecture', strange)}"
        )
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise WeightsError(
                f"{files.tensors[0]}: {name} is of shape {tuple(found[name].shape)}, but the sizes "
                f"in config.json make it {tuple(shape)}; give a directory whose files belong "
                "together"
            )
    return {name: found[published_name(name)] for name in model.state_dict()}


def published_name(name: str) -> str:
    """Return what the published files call the model's tensor `name`."""
    *layer, module, parameter = name.split(".")
    prefix = f"encoder.layer.{layer[1]}." if layer else ""
    return f"{prefix}{PUBLISHED_MODULES[module]}.{parameter}"


def _some(what: str, names: list[str]) -> str:
    return f"{len(names)} tensors {what}" + (f" ({', '.join(names[:3])}, ...)" if names else "")

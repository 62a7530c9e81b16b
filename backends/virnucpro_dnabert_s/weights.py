"""Finds, checks and loads the published files of DNABERT-S and DNABERT-2.

A directory holds config.json, tokenizer.json, and the tensors in model.safetensors or
pytorch_model.bin, in one file or several. The names of DNABERT-2's tensors start with `bert.`, and
it has a language model's head `cls.*`. DNABERT-S has neither, but a pooler.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import torch

from virnucpro.backend.changes import Changes, apply_change, check_changes
from virnucpro.backend.interface import Attention, Weights
from virnucpro.backend.model_settings import check_settings
from virnucpro.backend.tensors import check_stated_sizes, check_tensors
from virnucpro.backend.trainable import checkpoint_layers
from virnucpro.backend.weights import (
    digest_files,
    find_weight_files,
    get_size,
    locate_weights,
    read_json,
    read_tensors,
)
from virnucpro.errors import WeightsError, brief
from virnucpro.kernels import choose_attention, onednn
from virnucpro_dnabert_s.attention import AttentionKernel
from virnucpro_dnabert_s.model import DnabertS, ModelConfig
from virnucpro_dnabert_s.tokens import check_tokens

HUB_PATTERNS = ("config.json", "tokenizer.json", "model*.safetensors*", "pytorch_model*.bin*")

# Parts of the published models that an embedding does not need.
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
    """Find, digest and check the weights at `location` without loading them.

    Raises:
        WeightsError: Nothing is there, or it is unreadable, unsafe, or of another architecture.
    """
    path = locate_weights(location, HUB_PATTERNS)
    files = find_files(path)
    config = read_config(files.config)
    check_tokens(files.tokenizer, config.vocab_size)
    # Only to check it. It is mapped, so this reads little.
    read_state_dict(files, config)
    # The tokenizer too: with other tokens, the same tensors give other embeddings.
    identity = digest_files([*files.tensors, files.config, files.tokenizer])
    return Weights(location, path, identity, config.hidden_size)


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: Attention,
    changes: Changes | None = None,
) -> DnabertS:
    """Return the model in `path` on `device`, its parameters in `dtype`, ready for inference.

    Raises:
        WeightsError: The files do not hold what the model needs, or `changes` do not fit it.
        UsageError: `flash` does not work in `dtype` on `device`, or flash-attn is missing.
    """
    files = find_files(path)
    config = read_config(files.config)
    head_dim = config.hidden_size // config.num_attention_heads
    kernel = choose_attention(attention, head_dim=head_dim, dtype=dtype, device=device)
    tensors = read_state_dict(files, config)
    check_changes(changes or {}, {name: tensor.shape for name, tensor in tensors.items()})
    for name, change in (changes or {}).items():
        tensors[name] = apply_change(tensors[name].to(device), change)
    model = make_meta_model(config, kernel)
    # Always a copy: otherwise the model would read the mapped file, which somebody may replace.
    model.load_state_dict(
        {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}, assign=True
    )
    model.requires_grad_(False)
    onednn.pack_where_it_pays(model, attention, dtype, device)
    return model.eval()


def load_trainable(
    path: Path, *, dtype: torch.dtype, device: torch.device, gradient_checkpointing: bool = False
) -> DnabertS:
    """Return the model to train; see `virnucpro.backend.interface.TrainableBackend`.

    Raises:
        WeightsError: The files do not hold what the model needs.
    """
    # With `sdpa`, nothing is packed or fused: every operation has gradients.
    model = load_model(path, dtype=dtype, device=device, attention="sdpa")
    if gradient_checkpointing:
        checkpoint_layers(model)
    return model


def find_files(path: Path) -> WeightFiles:
    """Return the files of the model in the directory `path`, or beside the weights file `path`.

    Raises:
        WeightsError: One of them is missing.
    """
    # A file of tensors alone says neither its sizes nor its tokens, so its directory counts.
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
        WeightsError: It is of another kind of model, or a size is missing or makes no sense.
    """
    values = read_json(path)
    model_type = values.get("model_type", "bert")
    if model_type != "bert":
        raise WeightsError(
            f"{path}: describes a model of type {brief(model_type)}; DNABERT-S's is of type 'bert'"
        )
    # Rotary positions would make it another model, whose tensors have the same names and shapes.
    check_settings(path, values, {"hidden_act": "gelu", "rope_theta": {}, "rope_parameters": {}})
    eps = values.get("layer_norm_eps")
    if not isinstance(eps, float):
        raise WeightsError(f"{path}: layer_norm_eps should be a decimal number, found {brief(eps)}")
    names = [field.name for field in fields(ModelConfig) if field.name != "layer_norm_eps"]
    sizes = {name: get_size(path, values, name) for name in names}
    config = ModelConfig(**sizes, layer_norm_eps=eps)
    if config.hidden_size % config.num_attention_heads:
        raise WeightsError(
            f"{path}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    return config


def make_meta_model(config: ModelConfig, attention: AttentionKernel = "sdpa") -> DnabertS:
    """Return the model without memory: its tensors have shapes, but no numbers."""
    # No memory and no random numbers: the tensors of the file take these places.
    with torch.device("meta"):
        return DnabertS(config, attention)


def read_state_dict(files: WeightFiles, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Return the tensors of the model under its names, memory-mapped from the files.

    Raises:
        WeightsError: Tensors are missing, of another architecture, or of another shape.
    """
    found = {
        name.removeprefix("bert."): tensor
        for path in files.tensors
        for name, tensor in read_tensors(path).items()
    }
    # Everything else must be known: a tensor too many is a sign of another architecture.
    found = {name: found[name] for name in found if not name.startswith(UNUSED_PREFIXES)}
    # Compared before a model is made: a size from a strange file could take all memory.
    sizes = {name: size for name, size in asdict(config).items() if isinstance(size, int)}
    check_stated_sizes(files.config, sizes, found)
    wanted = make_meta_model(config).state_dict()
    shapes = {published_name(name): tensor.shape for name, tensor in wanted.items()}
    check_tensors(files.tensors[0], found, shapes)
    return {name: found[published_name(name)] for name in wanted}


def published_name(name: str) -> str:
    """Return what the published files call the model's tensor `name`."""
    *layer, module, parameter = name.split(".")
    prefix = f"encoder.layer.{layer[1]}." if layer else ""
    return f"{prefix}{PUBLISHED_MODULES[module]}.{parameter}"

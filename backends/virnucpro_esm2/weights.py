"""Finds, checks and loads ESM-2 from fair-esm `.pt` files and transformers directories.

The two layouts name the same tensors differently. `Layout` says what each calls our parameters.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro.backend.changes import Changes, apply_change, check_changes
from virnucpro.backend.interface import Attention, Weights
from virnucpro.backend.model_settings import check_settings, get_rope_theta, get_switch
from virnucpro.backend.tensors import check_state_dict, check_stated_sizes, check_tensors
from virnucpro.backend.trainable import checkpoint_layers
from virnucpro.backend.weights import (
    digest_files,
    find_weight_files,
    get_size,
    locate_weights,
    read_json,
    read_pickle,
    read_tensors,
    without_wrappers,
)
from virnucpro.errors import WeightsError, brief, first_line
from virnucpro.kernels import float8, onednn
from virnucpro_esm2.attention import attend_with_gradients
from virnucpro_esm2.model import Esm2, Esm2Config, make_empty_model
from virnucpro_esm2.rotary import default_frequencies
from virnucpro_esm2.tokens import TOKENS

HUB_FILES = ("config.json", "model*.safetensors*", "pytorch_model*.bin*")

SETTINGS: dict[str, Any] = {
    "hidden_act": "gelu",
    "is_folding_model": False,
    "pad_token_id": TOKENS.index("<pad>"),
    "mask_token_id": TOKENS.index("<mask>"),
    "vocab_size": len(TOKENS),
    "vocab_list": list(TOKENS),
}
"""The settings of a config.json that have one value in all sizes of ESM-2."""

OTHER_FAIR_ESM_MODELS = {
    "roberta_large": "ESM-1b or ESM-1v",
    "protein_bert_base": "ESM-1",
    "msa_transformer": "the MSA Transformer",
}
"""The `arch` that fair-esm's files have from before ESM-2."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What one file layout calls our parameters.

    Attributes:
        prefix: A pattern of what every key starts with.
        layer: How the keys of a layer go on, with a place for its number.
        outer: From our modules outside the layers to theirs.
        inner: From our modules inside a layer to theirs, whose tensors are stacked in this order.
        rotary: How the keys of rotary frequencies end.
    """

    prefix: str
    layer: str
    outer: Mapping[str, str]
    inner: Mapping[str, tuple[str, ...]]
    rotary: str


FAIR_ESM = Layout(
    # The language model's head has the shorter one. fair-esm strips both.
    prefix=r"encoder\.(sentence_encoder\.)?",
    layer="layers.{}.",
    outer={"embed_tokens": "embed_tokens", "final_norm": "emb_layer_norm_after"},
    inner={
        "attention_norm": ("self_attn_layer_norm",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.out_proj",),
        # The last norm of a layer. That of the model is `emb_layer_norm_after`.
        "ffn_norm": ("final_layer_norm",),
        "fc1": ("fc1",),
        "fc2": ("fc2",),
    },
    rotary="self_attn.rot_emb.inv_freq",
)

TRANSFORMERS = Layout(
    prefix=r"esm\.",
    layer="encoder.layer.{}.",
    outer={
        "embed_tokens": "embeddings.word_embeddings",
        "final_norm": "encoder.emb_layer_norm_after",
    },
    inner={
        "attention_norm": ("attention.LayerNorm",),
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "out": ("attention.output.dense",),
        # The norm before the feed-forward, beside the one that is inside `attention`.
        "ffn_norm": ("LayerNorm",),
        "fc1": ("intermediate.dense",),
        "fc2": ("output.dense",),
    },
    rotary="rotary_embeddings.inv_freq",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An ESM-2 on disk, checked; its tensors are memory-mapped.

    Attributes:
        config: The model's sizes.
        files: All files that decide the embeddings.
        sources: For each of our parameters, the tensors that are stacked to make it.
        frequencies_R: The stored rotary frequencies; None if the file has none.
    """

    config: Esm2Config
    files: list[Path]
    sources: dict[str, tuple[Tensor, ...]]
    frequencies_R: Tensor | None


def open_weights(location: str) -> Weights:
    """Find, digest and check the weights at `location` without loading them.

    Raises:
        WeightsError: Nothing is there, or it is unreadable, unsafe, or not an ESM-2.
    """
    path = locate_weights(location, HUB_FILES)
    checkpoint = read_checkpoint(path)
    return Weights(location, path, digest_files(checkpoint.files), checkpoint.config.embed_dim)


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: Attention,
    changes: Changes | None = None,
) -> Esm2:
    """Return the model with the weights at `path`, cast tensor by tensor on the way to `device`.

    Raises:
        WeightsError: The file does not hold an ESM-2, or `changes` do not fit it.
        UsageError: `attention`, or a model of these sizes, does not work in `dtype` on `device`.
    """
    changes = changes or {}
    checkpoint = read_checkpoint(path)
    model = make_empty_model(checkpoint.config, dtype=dtype, device=device, attention=attention)
    check_changes(changes, {name: tensor.shape for name, tensor in model.named_parameters()})
    for name, parameter in model.named_parameters():
        sources = checkpoint.sources[name]
        if name in changes:
            stacked = torch.cat([source.to(device) for source in sources])
            parameter.copy_(apply_change(stacked, changes[name]))
            continue
        # Part by part: stacking queries, keys and values first would copy them on the host.
        for part, source in zip(parameter.chunk(len(sources)), sources, strict=True):
            # Through pinned memory: a pass may run meanwhile, and its kernels wait while a GPU
            # reads a mapped file. A blocking copy would convert on the CPU: seconds for 3B.
            sent = source.pin_memory() if device.type == "cuda" else source
            part.copy_(sent, non_blocking=True)
    # The file's own frequencies win: in float16 they are rounded, and meant to be.
    if checkpoint.frequencies_R is not None:
        model.set_rotary(checkpoint.frequencies_R)
    # Only now: scales follow from the weights, so all weights must be there.
    if dtype == float8.DTYPE:
        model.quantize()
    else:
        onednn.pack_where_it_pays(model, attention, dtype, device)
    return model.eval()


def load_trainable(
    path: Path, *, dtype: torch.dtype, device: torch.device, gradient_checkpointing: bool = False
) -> Esm2:
    """Return the model to train; see `virnucpro.backend.interface.TrainableBackend`.

    Raises:
        WeightsError: The file does not hold an ESM-2.
    """
    # With `sdpa`, nothing is packed or fused: every operation has gradients.
    model = load_model(path, dtype=dtype, device=device, attention="sdpa")
    model.attend = attend_with_gradients
    if gradient_checkpointing:
        checkpoint_layers(model)
    return model


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what is at `path`, a fair-esm file or a transformers directory, after checking it.

    Raises:
        WeightsError: It is unreadable, unsafe or of another architecture, or tensors are missing
            or misshapen.
    """
    if path.is_dir():
        config = _read_transformers_config(path / "config.json")
        _check_vocabulary(path / "vocab.txt")
        files = find_weight_files(path)
        tensors = {key: value for file in files for key, value in read_tensors(file).items()}
        return _check(path, config, [*files, path / "config.json"], TRANSFORMERS, tensors)
    if path.suffix in (".safetensors", ".bin"):
        raise WeightsError(
            f"{path}: this file alone does not say how many attention heads the model has; give "
            "the directory that holds it and its config.json"
        )
    config, tensors = _read_fair_esm(path)
    return _check(path, config, [path], FAIR_ESM, tensors)


def source_names(config: Esm2Config, layout: Layout) -> dict[str, tuple[str, ...]]:
    """Return for each of our parameters its keys in `layout`, without the prefix."""
    modules: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in layout.outer.items()}
    for number in range(config.num_layers):
        start = layout.layer.format(number)
        for ours, theirs in layout.inner.items():
            modules[f"layers.{number}.{ours}"] = tuple(start + name for name in theirs)
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs)
        for ours, theirs in modules.items()
        for kind in (("weight",) if ours == "embed_tokens" else ("weight", "bias"))
    }


def _read_fair_esm(path: Path) -> tuple[Esm2Config, dict[str, Any]]:
    value = read_pickle(path, [argparse.Namespace])
    if not isinstance(value, Mapping):
        raise WeightsError(f"{path}: a fair-esm file was expected, found {type(value).__name__}")
    if "args" in value:
        arch = str(getattr(value["args"], "arch", "unknown"))[:80]
        raise WeightsError(
            f"{path}: holds {OTHER_FAIR_ESM_MODELS.get(arch, 'another model')} (arch {arch}); "
            "this backend reads ESM-2 (esm2_*.pt)"
        )
    cfg, tensors = value.get("cfg"), value.get("model")
    model_cfg = cfg.get("model") if isinstance(cfg, Mapping) else None
    if not isinstance(model_cfg, argparse.Namespace) or tensors is None:
        hint = " It is a contact-regression file." if "contact-regression" in path.name else ""
        raise WeightsError(
            f"{path}: not a fair-esm ESM-2 file, which holds 'cfg' and 'model'.{hint} Give the "
            "esm2_*.pt itself, or a transformers directory"
        )
    fields = vars(model_cfg)
    embed_dim = get_size(path, fields, "encoder_embed_dim")
    config = Esm2Config(
        num_layers=get_size(path, fields, "encoder_layers"),
        embed_dim=embed_dim,
        num_heads=get_size(path, fields, "encoder_attention_heads"),
        # fair-esm's files do not say it; all published ESM-2 have this ratio.
        ffn_dim=4 * embed_dim,
        # All published ESM-2 have it.
        token_dropout=bool(fields.get("token_dropout", True)),
    )
    return config, without_wrappers(check_state_dict(path, tensors))


def _read_transformers_config(path: Path) -> Esm2Config:
    fields = read_json(path)
    if fields.get("model_type") != "esm":
        raise WeightsError(
            f"{path}: describes a model of type {brief(fields.get('model_type'))} "
            f"(architectures {brief(fields.get('architectures'))}); ESM-2 is of type 'esm'"
        )
    # The defaults are those of transformers' EsmConfig, which a config.json may leave out.
    positions = fields.get("position_embedding_type", "absolute")
    if positions != "rotary" or fields.get("emb_layer_norm_before"):
        raise WeightsError(
            f"{path}: describes ESM-1b or ESM-1v ({positions} positions); this backend reads "
            "ESM-2, which has rotary positions and no layer norm before the first layer"
        )
    config = Esm2Config(
        num_layers=get_size(path, fields, "num_hidden_layers"),
        embed_dim=get_size(path, fields, "hidden_size"),
        num_heads=get_size(path, fields, "num_attention_heads"),
        ffn_dim=get_size(path, fields, "intermediate_size"),
        layer_norm_eps=float(fields.get("layer_norm_eps", 1e-12)),
        token_dropout=get_switch(path, fields, "token_dropout", default=False),
        rope_theta=get_rope_theta(path, fields),
    )
    check_settings(path, fields, SETTINGS | {"head_dim": config.head_dim})
    return config


def _check_vocabulary(path: Path) -> None:
    """Compare the tokens beside a model with ours: in another order, they mean other residues."""
    try:
        tokens = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        # The settings are compared anyway, and may list the tokens, too.
        return
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({first_line(error)})") from error
    if tokens != list(TOKENS):
        raise WeightsError(
            f"{path}: lists other tokens than ESM-2's {len(TOKENS)}, or in another order; this "
            "backend reads models with ESM-2's tokens"
        )


def _check(
    path: Path,
    config: Esm2Config,
    files: list[Path],
    layout: Layout,
    raw_tensors: Mapping[str, Any],
) -> Checkpoint:
    """Return the checkpoint after comparing its tensors with those that the model needs."""
    tensors = {re.sub(f"^{layout.prefix}", "", key): value for key, value in raw_tensors.items()}
    if config.embed_dim % (2 * config.num_heads):
        raise WeightsError(
            f"{path}: width {config.embed_dim} cannot be divided into {config.num_heads} heads of "
            "even size"
        )
    # Before a model of that many layers is made: the number comes from an untrusted file.
    layer_key = re.compile(re.escape(layout.layer).replace(r"\{\}", r"(\d+)"))
    num_layers = len({found[1] for found in map(layer_key.match, tensors) if found})
    if num_layers != config.num_layers:
        raise WeightsError(
            f"{path}: the settings say {config.num_layers} layers, and the tensors have "
            f"{num_layers}"
        )
    check_stated_sizes(path, {"width": config.embed_dim, "ffn_dim": config.ffn_dim}, tensors)
    names = source_names(config, layout)
    shapes = {
        key: (len(parameter) // len(names[ours]), *parameter.shape[1:])
        for ours, parameter in Esm2(config, dtype=torch.float32).named_parameters()
        for key in names[ours]
    }
    # Every layer stores the same frequencies, so one is enough.
    rotary_keys = [key for key in tensors if key.endswith(layout.rotary)][:1]
    shapes |= dict.fromkeys(rotary_keys, (config.head_dim // 2,))
    # The language model's head is another tensor, which an embedding does not need.
    check_tensors(path, tensors, shapes, allow_others=True)
    sources = {ours: tuple(tensors[key] for key in keys) for ours, keys in names.items()}
    frequencies_R = tensors[rotary_keys[0]] if rotary_keys else None
    if frequencies_R is not None:
        wanted_R = default_frequencies(config.head_dim, config.rope_theta)
        # Files in float16 have rounded frequencies, and are meant to.
        if not torch.allclose(frequencies_R.float(), wanted_R, rtol=0.01, atol=1e-5):
            raise WeightsError(
                f"{path}: {rotary_keys[0]} in the file has other rotary frequencies than those of "
                f"rope_theta {config.rope_theta:g} in the settings; give files that belong together"
            )
    return Checkpoint(config, files, sources, frequencies_R)

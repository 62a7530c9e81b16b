"""Writes a trained model in the files that `virnucpro predict` reads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from virnucpro_dnabert_s.weights import published_name
from virnucpro_esm2.tokens import TOKENS
from virnucpro_esm2.weights import TRANSFORMERS, source_names

from tools.mini.model import MiniModel
from tools.mini.stretches import DNA_SPECIAL
from virnucpro.config import MINI_LENGTHS_BP, FrameRule
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import save_classifier


def export_model(directory: Path, model: MiniModel, rule: FrameRule) -> None:
    """Write `dnabert_s/` and `esm2/` in fp16, and classifiers with the head in float32.

    The classifiers for different chunk lengths hold the same head, without a calibration.

    Args:
        directory: Made if it is not there.
        model: The trained model.
        rule: Which stretches of a chunk it reads.
    """
    _export_dna(directory / "dnabert_s", model)
    _export_protein(directory / "esm2", model)
    sizes = model.head.sizes
    for length_bp in MINI_LENGTHS_BP:
        metadata = ClassifierMetadata(
            "dnabert-s",
            "esm2",
            sizes.dna_dim,
            sizes.protein_dim,
            length_bp,
            frame_rule=str(rule),
            chunk_head=sizes,
        )
        path = directory / f"{length_bp}_model.safetensors"
        save_classifier(path, model.head.state_dict(), metadata)


def make_tokenizer(word_bp: int) -> Tokenizer:
    """Return a tokenizer that cuts DNA into words of `word_bp` bases; the last may be shorter.

    A word with another letter than A, C, G or T is [UNK]; lower case means the same as upper case.
    """
    words = (
        "".join(letters)
        for num_bases in range(1, word_bp + 1)
        for letters in itertools.product("ACGT", repeat=num_bases)
    )
    vocabulary = {word: number for number, word in enumerate((*DNA_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(letter, letter.upper()) for letter in "acgt"]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f".{{1,{word_bp}}}"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, DNA_SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _export_dna(directory: Path, model: MiniModel) -> None:
    sizes = model.sizes
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": sizes.dna_width,
        "intermediate_size": sizes.dna_inner,
        "layer_norm_eps": model.dna.embedding_norm.eps,
        "num_attention_heads": sizes.dna_heads,
        "num_hidden_layers": sizes.dna_layers,
        "pad_token_id": DNA_SPECIAL.index("[PAD]"),
        "type_vocab_size": model.dna.token_type_embeddings.num_embeddings,
        "vocab_size": model.dna.word_embeddings.num_embeddings,
    }
    tensors = {published_name(name): value for name, value in model.dna.state_dict().items()}
    _write_directory(directory, config, tensors)
    make_tokenizer(sizes.word_bp).save(str(directory / "tokenizer.json"))


def _export_protein(directory: Path, model: MiniModel) -> None:
    config = {
        "architectures": ["EsmModel"],
        "model_type": "esm",
        "num_hidden_layers": model.protein.config.num_layers,
        "hidden_size": model.protein.config.embed_dim,
        "num_attention_heads": model.protein.config.num_heads,
        "intermediate_size": model.protein.config.ffn_dim,
        "layer_norm_eps": model.protein.config.layer_norm_eps,
        "token_dropout": model.protein.config.token_dropout,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "vocab_size": len(TOKENS),
        "mask_token_id": TOKENS.index("<mask>"),
        "pad_token_id": TOKENS.index("<pad>"),
    }
    parameters = dict(model.protein.named_parameters())
    tensors = {
        f"esm.{key}": part
        for ours, keys in source_names(model.protein.config, TRANSFORMERS).items()
        for key, part in zip(keys, parameters[ours].chunk(len(keys)), strict=True)
    }
    _write_directory(directory, config, tensors)


def _write_directory(
    directory: Path, config: dict[str, object], tensors: dict[str, Tensor]
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    halves = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in tensors.items()
    }
    (directory / "model.safetensors").write_bytes(save(halves, {"format": "pt"}))

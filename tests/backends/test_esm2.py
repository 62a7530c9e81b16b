"""The ESM-2 backend against fair-esm and transformers, and against every kind of bad file."""

from __future__ import annotations

import json
import os
import random
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn import functional
from torch.nn.functional import cosine_similarity
from virnucpro_esm2 import MIN_FP8_TOKENS, backend
from virnucpro_esm2.benchmarking import name_parts
from virnucpro_esm2.model import Esm2Config
from virnucpro_esm2.rotary import default_frequencies
from virnucpro_esm2.tokens import TOKENS, Esm2Collator
from virnucpro_esm2.weights import FAIR_ESM, TRANSFORMERS, source_names

from tools.make_esm2_weights import (
    make_config,
    make_random_model,
    write_fair_esm,
    write_transformers,
)
from virnucpro.backend.changes import Change, LowRank, apply_change
from virnucpro.backend.interface import Attention, Backend, TokenBatch
from virnucpro.backend.testing import BackendContract
from virnucpro.errors import UsageError, WeightsError
from virnucpro.kernels import float8

CPU = torch.device("cpu")
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
MIXED_LENGTHS = (166, 1, 1200, 2, 33, 1024)

# Largest difference relative to the largest entry; in float32 about 1e-6 is measured. In half
# precision two attentions round in other places.
FLOAT32_BOUND = 2e-5
HALF_PRECISION_BOUNDS = {torch.bfloat16: 5e-2, torch.float16: 1e-2}
HALF_PRECISIONS = list(HALF_PRECISION_BOUNDS)


class TestEsm2Contract(BackendContract):
    def make_backend(self) -> Backend:
        return backend

    def make_weights(self, directory: Path, seed: int) -> str:
        return str(write_fair_esm(directory / "esm2_test.pt", make_config(), seed=seed))


def make_proteins(lengths: tuple[int, ...], letters: str = AMINO_ACIDS) -> list[str]:
    source = random.Random(0)
    return ["".join(source.choices(letters, k=length)) for length in lengths]


def collate(sequences: list[str]) -> TokenBatch:
    return Esm2Collator()(np.arange(len(sequences), dtype=np.int64), sequences)


def embed(
    path: Path,
    sequences: list[str],
    attention: Attention = "auto",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    weights = backend.open_weights(str(path))
    encoder = backend.load_encoder(weights, dtype=dtype, device=CPU, attention=attention)
    with torch.inference_mode():
        return encoder(collate(sequences))


def largest_difference(found_BE: torch.Tensor, wanted_BE: torch.Tensor) -> float:
    """Return the worst sequence's largest difference, relative to its largest entry."""
    difference_B = (found_BE - wanted_BE).abs().amax(1) / wanted_BE.abs().amax(1)
    return float(difference_B.max())


# Tokens


def test_tokens_are_fair_esms() -> None:
    esm = pytest.importorskip("esm")
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    sequences = make_proteins((40, 1, 1024, 1025, 1200), letters="LAGVSERTIDPKQNFYMHWCXBUZO.-")
    _, _, tokens_BL = alphabet.get_batch_converter(1024)([("", s) for s in sequences])
    wanted = [row[row != alphabet.padding_idx].tolist() for row in tokens_BL]
    batch = collate(sequences)
    assert [x.tolist() for x in batch.token_ids_T.split(batch.lengths_B.tolist())] == wanted


@pytest.mark.parametrize("letters", ["J", "**", "a", "é", "M M", "\x00"])
def test_other_letters_are_one_unknown_token_each(letters: str) -> None:
    wanted = [20 if letter == "M" else 3 for letter in letters]
    assert collate([letters]).token_ids_T.tolist() == [0, *wanted, 2]


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 5000])
def test_token_cost_is_exact(length: int) -> None:
    sequence = "M" * length
    assert backend.token_cost(sequence) == collate([sequence]).max_length


# Numbers


def embed_by_fair_esm(path: Path, sequences: list[str]) -> torch.Tensor:
    """Return the pooled embeddings of fair-esm's own model, from its own reading of the file."""
    esm = pytest.importorskip("esm")
    data = torch.load(path, weights_only=False)
    regression = torch.load(path.with_name(f"{path.stem}-contact-regression.pt"))
    load = esm.pretrained.load_model_and_alphabet_core
    model, alphabet = load(path.stem, data, regression)
    model = model.float().eval()
    _, _, tokens_BL = alphabet.get_batch_converter(1024)([("", s) for s in sequences])
    with torch.inference_mode():
        hidden_BLD = model(tokens_BL, [model.num_layers])["representations"][model.num_layers]
    pairs = zip(hidden_BLD, sequences, strict=True)
    return torch.stack([hidden_LD[1 : len(s[:1024]) + 1].mean(0) for hidden_LD, s in pairs])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dtype_on_disk", "lengths"),
    [
        (make_config(6, 40, 2), torch.float32, MIXED_LENGTHS),
        (make_config(6, 40, 2), torch.float16, MIXED_LENGTHS),
        # As many layers as the 3B model. Long proteins would take ten times as long here.
        (make_config(36, 64, 4), torch.float16, (166, 1, 2, 33)),
    ],
    ids=["6 layers, fp32", "6 layers, fp16", "36 layers, fp16"],
)
def test_equals_fair_esm(
    config: Esm2Config, dtype_on_disk: torch.dtype, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "esm2_test.pt"
    write_fair_esm(path, config, dtype=dtype_on_disk, contact_regression=True)
    sequences = make_proteins(lengths)
    wanted_BE = embed_by_fair_esm(path, sequences)
    together_BE = embed(path, sequences)
    alone_BE = torch.cat([embed(path, [sequence]) for sequence in sequences])
    assert largest_difference(together_BE, wanted_BE) < FLOAT32_BOUND
    assert largest_difference(embed(path, sequences, "eager"), wanted_BE) < FLOAT32_BOUND
    assert largest_difference(embed(path, sequences, "sdpa"), wanted_BE) < FLOAT32_BOUND
    assert largest_difference(alone_BE, wanted_BE) < FLOAT32_BOUND
    assert largest_difference(together_BE, alone_BE) < FLOAT32_BOUND


def test_without_token_dropout_equals_fair_esm(tmp_path: Path) -> None:
    config = Esm2Config(6, 40, 2, ffn_dim=160, token_dropout=False)
    path = write_fair_esm(tmp_path / "esm2_test.pt", config, contact_regression=True)
    sequences = make_proteins((20, 30))
    wanted_BE = embed_by_fair_esm(path, sequences)
    assert largest_difference(embed(path, sequences), wanted_BE) < FLOAT32_BOUND


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
def test_both_layouts_give_the_same_numbers(
    safetensors: bool, num_shards: int, tmp_path: Path
) -> None:
    fair_esm = write_fair_esm(tmp_path / "esm2_test.pt", make_config(), dtype=torch.float32)
    transformers = write_transformers(
        tmp_path / "model", make_config(), safetensors=safetensors, num_shards=num_shards
    )
    sequences = make_proteins((33, 166))
    assert torch.equal(embed(fair_esm, sequences), embed(transformers, sequences))


@pytest.mark.slow
def test_equals_transformers_reading_and_writing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = write_transformers(tmp_path / "ours", make_config())
    model = transformers.EsmModel.from_pretrained(ours, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    # One sequence at a time: padding is what transformers has got wrong.
    for sequence in make_proteins((1, 33, 600)):
        with torch.inference_mode():
            hidden_TD = model(collate([sequence]).token_ids_T[None]).last_hidden_state[0]
        wanted_BE = hidden_TD[1:-1].mean(0, keepdim=True)
        assert largest_difference(embed(ours, [sequence]), wanted_BE) < FLOAT32_BOUND
        theirs_BE = embed(tmp_path / "theirs", [sequence])
        assert largest_difference(theirs_BE, wanted_BE) < FLOAT32_BOUND


def test_float16_rotary_frequencies_of_a_transformers_directory_are_kept(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config(), dtype=torch.float16)
    directory = write_transformers(
        tmp_path / "model", make_config(), dtype=torch.float16, safetensors=False
    )
    stored = torch.load(path, weights_only=False)["model"]
    tensors = torch.load(directory / "pytorch_model.bin")
    tensors["esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq"] = stored[
        "encoder.sentence_encoder.layers.0.self_attn.rot_emb.inv_freq"
    ]
    torch.save(tensors, directory / "pytorch_model.bin")
    sequences = make_proteins((600,))
    assert torch.equal(embed(path, sequences), embed(directory, sequences))


# Training


def load_trainable(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> torch.nn.Module:
    weights = backend.open_weights(str(path))
    return backend.load_trainable(weights, dtype=dtype, device=device)


def weigh(embedding_BE: torch.Tensor) -> torch.Tensor:
    """Return a sum in which each number has a weight of its own, the same in any batch."""
    return (embedding_BE * torch.arange(embedding_BE.shape[1], device=embedding_BE.device)).sum()


@pytest.mark.slow
def test_the_gradients_of_every_parameter_equal_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = make_config()
    directory = write_transformers(tmp_path / "model", config)
    sequences = make_proteins((1, 33, 300, 33))
    model = load_trainable(directory).requires_grad_(True)
    weigh(model(collate(sequences))).backward()
    theirs = transformers.EsmModel.from_pretrained(directory, add_pooling_layer=False).eval()
    # One sequence at a time: padding is what transformers has got wrong.
    for sequence in sequences:
        hidden_TD = theirs(collate([sequence]).token_ids_T[None]).last_hidden_state[0]
        weigh(hidden_TD[1:-1].mean(0, keepdim=True)).backward()
    names = source_names(config, TRANSFORMERS)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        wanted = torch.cat([theirs.get_parameter(part).grad for part in names[name]])
        # The gradients of keys' biases are zero: softmax does not see what all keys share.
        scale = max(float(wanted.abs().max()), 1e-2)
        assert float((parameter.grad - wanted).abs().max()) < 2e-5 * scale, name


def make_changes(model: nn.Module) -> dict[str, Change]:
    """Return a change of low rank for every linear layer, and another norm at the end."""
    changes: dict[str, Change] = {"final_norm.bias": torch.linspace(-1, 1, 64)}
    generator = torch.Generator().manual_seed(3)
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear):
            down_RI = torch.randn(4, linear.in_features, generator=generator)
            up_OR = torch.randn(linear.out_features, 4, generator=generator)
            changes[f"{name}.weight"] = LowRank(down_RI, up_OR / 100)
    return changes


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, float8.DTYPE])
def test_changes_are_merged_before_anything_is_rounded(
    dtype: torch.dtype, attention: Attention, tmp_path: Path
) -> None:
    config = make_config(4, 64, 4)
    path = write_fair_esm(tmp_path / "esm2_test.pt", config, dtype=torch.float32)
    weights = backend.open_weights(str(path))
    model = load_trainable(path)
    changes = make_changes(model)
    assert len(changes) == 1 + 4 * len(backend.info.linear_layers)
    # The same numbers in a file of weights.
    tensors = {
        name: apply_change(parameter.data, changes[name]) if name in changes else parameter.data
        for name, parameter in model.named_parameters()
    }
    stored = torch.load(path, weights_only=False)
    prefix = "encoder.sentence_encoder."
    parts = name_parts(config, tensors, FAIR_ESM)
    stored["model"] |= {prefix + name: tensor.clone() for name, tensor in parts.items()}
    torch.save(stored, tmp_path / "esm2_merged.pt")
    encoder = backend.load_encoder(
        weights, dtype=dtype, device=CPU, attention=attention, changes=changes
    )
    sequences = make_proteins((60, 5, 200))
    with torch.inference_mode():
        found_BE = encoder(collate(sequences))
    assert torch.equal(found_BE, embed(tmp_path / "esm2_merged.pt", sequences, attention, dtype))
    assert not torch.allclose(found_BE, embed(path, sequences, attention, dtype), rtol=0.1)


# Files


def test_weights_are_described_without_loading(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config(2, 48, 3))
    weights = backend.open_weights(str(path))
    assert weights.embedding_dim == 48
    assert weights.path == path
    assert weights.identity.startswith("sha256:")


def test_contact_regression_does_not_change_the_identity(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config())
    identity = backend.open_weights(str(path)).identity
    torch.save({"model": {}}, tmp_path / "esm2_test-contact-regression.pt")
    assert backend.open_weights(str(path)).identity == identity


def test_config_is_part_of_the_identity(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "model", make_config())
    identity = backend.open_weights(str(directory)).identity
    change_config(directory, token_dropout=False)
    assert backend.open_weights(str(directory)).identity != identity


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "esm2_test.pt"
    torch.save({"cfg": Malicious(f"touch {trace}"), "model": {}}, path)
    with pytest.raises(WeightsError, match=r"esm2_test\.pt: refused"):
        backend.open_weights(str(path))
    assert not trace.exists()


QUERY = "encoder.sentence_encoder.layers.1.self_attn.q_proj.weight"
FREQUENCIES = "encoder.sentence_encoder.layers.0.self_attn.rot_emb.inv_freq"


def remove_query(data: dict[str, Any]) -> None:
    del data["model"][QUERY]


def cut_query(data: dict[str, Any]) -> None:
    data["model"][QUERY] = data["model"][QUERY][:-1].clone()


def quantize_query(data: dict[str, Any]) -> None:
    data["model"][QUERY] = data["model"][QUERY].to(torch.int8)


def cut_frequencies(data: dict[str, Any]) -> None:
    data["model"][FREQUENCIES] = torch.ones(3)


def claim_more_layers(data: dict[str, Any]) -> None:
    data["cfg"]["model"].encoder_layers = 10**9


def claim_odd_heads(data: dict[str, Any]) -> None:
    data["cfg"]["model"].encoder_attention_heads = 3


def forget_width(data: dict[str, Any]) -> None:
    del data["cfg"]["model"].encoder_embed_dim


def become_esm1b(data: dict[str, Any]) -> None:
    del data["cfg"]
    data["args"] = Namespace(arch="roberta_large")


def become_contact_regression(data: dict[str, Any]) -> None:
    del data["cfg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_query, r"1 tensor \(layers\.1\.self_attn\.q_proj.* missing"),
        (cut_query, r"q_proj\.weight has shape \(39, 40\), and the settings ask for \(40, 40\)"),
        (quantize_query, r"should hold floating-point numbers, found torch\.int8"),
        (cut_frequencies, r"inv_freq has shape \(3,\), and the settings ask for \(10,\)"),
        (claim_more_layers, "the settings say 1000000000 layers, and the tensors have 6"),
        (claim_odd_heads, "width 40 cannot be divided into 3 heads"),
        (forget_width, "encoder_embed_dim should be a positive number, found None"),
        (become_esm1b, r"holds ESM-1b or ESM-1v \(arch roberta_large\)"),
        (become_contact_regression, "not a fair-esm ESM-2 file"),
    ],
)
def test_bad_fair_esm_files_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config())
    data = torch.load(path, weights_only=False)
    change(data)
    torch.save(data, path)
    with pytest.raises(WeightsError, match=message) as error:
        backend.open_weights(str(path))
    assert str(path) in str(error.value)


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "'bert' .*BertForMasked"),
        ({"position_embedding_type": "absolute"}, "ESM-1b or ESM-1v"),
        ({"emb_layer_norm_before": True}, "ESM-1b or ESM-1v"),
        ({"num_hidden_layers": 7}, "the settings say 7 layers, and the tensors have 6"),
        ({"hidden_size": "40"}, "hidden_size should be a positive number, found '40'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', which changes the numbers"),
        ({"vocab_size": 40}, "vocab_size is 40"),
        ({"vocab_list": ["A", "C"]}, "vocab_list is"),
        ({"pad_token_id": 0}, "pad_token_id is 0"),
        ({"is_folding_model": True}, "is_folding_model is True"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': "),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"head_dim": 4}, "head_dim is 4"),
        ({"token_dropout": "false"}, "token_dropout should be true or false, found 'false'"),
        ({"rope_theta": "much"}, "rope_theta should be one number above 1, found .'much'"),
        ({"rope_theta": [1]}, "rope_theta should be one number above 1"),
        ({"rope_theta": 5e4, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta should be one"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is .*yarn.*scales rotary"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is .*linear"),
    ],
)
def test_bad_transformers_directories_are_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory = write_transformers(tmp_path / "model", make_config())
    change_config(directory, **fields)
    with pytest.raises(WeightsError, match=message):
        backend.open_weights(str(directory))


PLAIN_SETTINGS = {
    "hidden_act": "gelu",
    "vocab_list": None,
    "pruned_heads": {},
    "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
    "attention_probs_dropout_prob": 0.5,
    "transformers_version": "5.0",
}


def test_settings_that_change_no_number_are_accepted(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "model", make_config())
    before = embed(directory, make_proteins((40,)))
    change_config(directory, **PLAIN_SETTINGS)
    assert torch.equal(embed(directory, make_proteins((40,))), before)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [500.0, 1_000_000.0])
def test_another_rope_theta_equals_transformers(theta: float, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = write_transformers(tmp_path / "model", make_config())
    plain = embed(directory, make_proteins((300,)))
    change_config(directory, rope_theta=theta)
    model = transformers.EsmModel.from_pretrained(directory, add_pooling_layer=False).eval()
    assert model.config.rope_theta == theta
    (sequence,) = make_proteins((300,))
    with torch.inference_mode():
        hidden_TD = model(collate([sequence]).token_ids_T[None]).last_hidden_state[0]
    wanted_BE = hidden_TD[1:-1].mean(0, keepdim=True)
    found_BE = embed(directory, [sequence])
    assert largest_difference(found_BE, wanted_BE) < FLOAT32_BOUND
    assert largest_difference(found_BE, plain) > FLOAT32_BOUND


def test_frequencies_that_contradict_the_settings_are_refused(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "model", make_config(), safetensors=False)
    tensors = torch.load(directory / "pytorch_model.bin")
    head_dim = make_config().head_dim
    name = "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq"
    for theta, is_refused in ((10_000.0, False), (500.0, True)):
        frequencies_R = default_frequencies(head_dim, theta)
        torch.save(tensors | {name: frequencies_R}, directory / "pytorch_model.bin")
        if not is_refused:
            backend.open_weights(str(directory))
            continue
        with pytest.raises(WeightsError, match="other rotary frequencies than those of rope_theta"):
            backend.open_weights(str(directory))
        change_config(directory, rope_theta=theta)
        backend.open_weights(str(directory))


def test_a_vocabulary_in_another_order_is_refused(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "model", make_config())
    (directory / "vocab.txt").write_text("\n".join(TOKENS))
    backend.open_weights(str(directory))
    (directory / "vocab.txt").write_text("\n".join([*TOKENS[:4], "A", "L", *TOKENS[6:]]))
    with pytest.raises(WeightsError, match=r"vocab\.txt: lists other tokens"):
        backend.open_weights(str(directory))


def with_old_names(name: str) -> str:
    is_norm = "layernorm." in name.lower() or "layer_norm" in name
    old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
    return old if is_norm else name


def test_old_names_of_layer_norms_are_read(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "model", make_config(), safetensors=False)
    path = directory / "pytorch_model.bin"
    before = embed(directory, make_proteins((40,)))
    tensors = torch.load(path)
    old = {with_old_names(name): tensor for name, tensor in tensors.items()}
    assert sum(name.endswith((".gamma", ".beta")) for name in old) == 2 * (2 * 6 + 1)
    torch.save(old, path)
    assert torch.equal(embed(directory, make_proteins((40,))), before)
    torch.save(old | tensors, path)
    with pytest.raises(WeightsError, match="twice, under its old name and its new one"):
        backend.open_weights(str(directory))


def test_a_file_without_its_config_is_refused(tmp_path: Path) -> None:
    directory = write_transformers(tmp_path / "model", make_config())
    with pytest.raises(WeightsError, match="give the directory"):
        backend.open_weights(str(directory / "model.safetensors"))


def test_flash_needs_a_gpu(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config())
    with pytest.raises(UsageError, match="needs a CUDA GPU and bf16 or fp16, found cpu"):
        embed(path, ["M"], "flash")


# 8 bits


def test_8_bits_are_near_float32(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config(6, 64, 4))
    proteins = make_proteins(MIXED_LENGTHS)
    found_BE = embed(path, proteins, dtype=float8.DTYPE)
    wanted_BE = embed(path, proteins)
    assert 0.99 < cosine_similarity(found_BE, wanted_BE).min() < 0.99999


def test_the_first_layers_and_short_proteins_are_not_in_8_bits() -> None:
    config = make_config(4, 64, 4)
    model = make_random_model(config, dtype=torch.bfloat16)
    quantized = make_random_model(config, dtype=float8.DTYPE)
    kinds = [type(layer.fc1) for layer in quantized.layers]
    assert kinds == [nn.Linear, nn.Linear, float8.Float8Linear, float8.Float8Linear]
    with torch.inference_mode():
        for length, is_equal in ((MIN_FP8_TOKENS - 3, True), (MIN_FP8_TOKENS - 2, False)):
            batch = collate(make_proteins((5, length)))
            assert torch.equal(model(batch), quantized(batch)) == is_equal


def test_no_value_of_attention_is_above_the_bound_of_its_layer() -> None:
    config = make_config(4, 64, 4)
    model = make_random_model(config)
    quantized = make_random_model(config, dtype=float8.DTYPE)
    for layer, quantized_layer in list(zip(model.layers, quantized.layers, strict=True))[2:]:
        # Tokens along the rows of weights: nothing of their length makes larger values.
        weight_DD, bias_D = layer.qkv.weight[2 * 64 :], layer.qkv.bias[2 * 64 :]
        tokens_DD = layer.attention_norm(weight_DD * layer.attention_norm.weight)
        largest = functional.linear(tokens_DD, weight_DD, bias_D).abs().max()
        assert largest < quantized_layer.value_bound < 1.5 * largest


def test_values_of_unequal_size_in_8_bits_have_a_scale_for_each_token() -> None:
    config = make_config(4, 64, 4)
    models = [make_random_model(config), make_random_model(config)]
    for model in models:
        model.layers[2].qkv.weight[2 * 64 + 7] *= 1000
        model.layers[2].out.weight[:, 7] /= 1000
    models[1].quantize()
    assert models[1].layers[2].value_bound is None
    assert models[1].layers[3].value_bound is not None
    batch = collate(make_proteins(MIXED_LENGTHS))
    with torch.inference_mode():
        wanted_BE, found_BE = (model(batch) for model in models)
    assert cosine_similarity(found_BE, wanted_BE).min() > 0.99


def test_8_bits_want_sizes_that_are_multiples_of_16(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config())
    with pytest.raises(UsageError, match="multiples of 16, found a model of width 40 and 160"):
        embed(path, ["M"], dtype=float8.DTYPE)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_half_precision_is_near_float32(
    dtype: torch.dtype, attention: Attention, tmp_path: Path
) -> None:
    path = write_fair_esm(tmp_path / "esm2_test.pt", make_config(), dtype=torch.float32)
    sequences = make_proteins(MIXED_LENGTHS)
    half_BE, full_BE = embed(path, sequences, attention, dtype), embed(path, sequences, "eager")
    assert half_BE.dtype == torch.float32
    assert largest_difference(half_BE, full_BE) < HALF_PRECISION_BOUNDS[dtype]


# On a GPU

GPU_CONFIG = make_config(12, 256, 4)


def embed_on_gpu(dtype: torch.dtype, attention: Attention) -> torch.Tensor:
    """Return embeddings of the model of the float32 random numbers, cast to `dtype`."""
    device = torch.device("cuda")
    model = make_random_model(GPU_CONFIG, dtype=dtype, device=device, attention=attention)
    source = make_random_model(GPU_CONFIG)
    for target, value in zip(model.parameters(), source.parameters(), strict=True):
        target.copy_(value)
    batch = send_to_device(collate(make_proteins(MIXED_LENGTHS)), device)
    with torch.inference_mode():
        return model(batch).cpu()


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["auto", "sdpa", "flash"])
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_attentions_agree_on_a_gpu(dtype: torch.dtype, attention: Attention) -> None:
    if attention == "flash":
        pytest.importorskip("flash_attn")
    difference = largest_difference(embed_on_gpu(dtype, attention), embed_on_gpu(dtype, "eager"))
    assert difference < HALF_PRECISION_BOUNDS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_half_precision_is_near_float32_on_a_gpu(dtype: torch.dtype, attention: Attention) -> None:
    half_BE, full_BE = embed_on_gpu(dtype, attention), embed_on_gpu(torch.float32, "sdpa")
    assert cosine_similarity(half_BE, full_BE).min() > 0.999
    assert largest_difference(half_BE, full_BE) < HALF_PRECISION_BOUNDS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_without_padding_on_a_gpu(
    dtype: torch.dtype, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 64, which torch's attention of packed sequences wants, unlike the contract's."""
    cuda = torch.device("cuda")
    path = write_fair_esm(tmp_path / "esm2_test.pt", GPU_CONFIG, dtype=torch.float32)
    weights = backend.open_weights(str(path))
    batch = collate(make_proteins(MIXED_LENGTHS))
    wanted = load_trainable(path).requires_grad_(True)
    weigh(wanted(batch)).backward()
    model = backend.load_trainable(
        weights, dtype=dtype, device=cuda, gradient_checkpointing=checkpointing
    ).requires_grad_(True)
    # Attention by length would wait for the GPU in every layer.
    monkeypatch.setattr("virnucpro_esm2.attention._attend_by_length", None)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.float32):
        loss = weigh(model(send_to_device(batch, cuda)))
    loss.backward()
    for (name, one), other in zip(model.named_parameters(), wanted.parameters(), strict=True):
        found_N, wanted_N = one.grad.float().cpu().flatten(), other.grad.flatten()
        assert cosine_similarity(found_N, wanted_N, dim=0) > 0.95, name


@pytest.mark.gpu
def test_float32_on_a_gpu_equals_the_cpu() -> None:
    with torch.inference_mode():
        wanted_BE = make_random_model(GPU_CONFIG)(collate(make_proteins(MIXED_LENGTHS)))
    assert largest_difference(embed_on_gpu(torch.float32, "sdpa"), wanted_BE) < FLOAT32_BOUND


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_is_refused_without_flash_attn() -> None:
    with pytest.raises(UsageError, match="needs the package flash-attn"):
        embed_on_gpu(torch.bfloat16, "flash")


@pytest.mark.gpu
def test_auto_is_our_own_kernels_in_half_precision_alone() -> None:
    device = torch.device("cuda")

    def is_fused(dtype: torch.dtype, attention: Attention) -> bool:
        return make_random_model(GPU_CONFIG, dtype=dtype, device=device, attention=attention).fused

    assert is_fused(torch.bfloat16, "auto")
    assert not is_fused(torch.bfloat16, "sdpa")
    assert not is_fused(torch.float32, "auto")


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_nothing_waits_for_the_gpu(attention: Attention) -> None:
    device = torch.device("cuda")
    model = make_random_model(GPU_CONFIG, dtype=torch.bfloat16, device=device, attention=attention)
    batch = send_to_device(collate(make_proteins(MIXED_LENGTHS)), device)
    with torch.inference_mode():
        model(batch)  # The first call may set libraries up.
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

"""The plain road: encoders of transformers, against our own ESM-2 and against plain loops."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from virnucpro_esm2 import backend as esm2
from virnucpro_transformers import backend, dna_backend

from tests.backends.test_esm2 import largest_difference, make_proteins
from tools.make_esm2_weights import make_config, write_transformers
from virnucpro.backend.changes import LowRank, apply_change
from virnucpro.backend.interface import Backend
from virnucpro.backend.testing import BackendContract
from virnucpro.errors import UsageError, WeightsError

pytestmark = pytest.mark.slow

ESM_TOKENS = [
    *("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-"),
    *("<null_1>", "<mask>"),
]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def write_esm_tokenizer(directory: Path, tokens: list[str]) -> None:
    (directory / "vocab.txt").write_text("\n".join(tokens))
    settings = {"tokenizer_class": "EsmTokenizer", "model_max_length": 5000}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def save_model(directory: Path, config, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(directory)
    return str(directory)


def write_esm2(directory: Path) -> str:
    write_transformers(directory, make_config())
    write_esm_tokenizer(directory, ESM_TOKENS)
    return str(directory)


def write_esm1b(directory: Path, seed: int = 0, num_positions: int = 1028) -> str:
    directory.mkdir(exist_ok=True)
    write_esm_tokenizer(directory, ESM_TOKENS)
    config = transformers.EsmConfig(
        vocab_size=len(ESM_TOKENS),
        pad_token_id=1,
        mask_token_id=32,
        max_position_embeddings=num_positions,
        position_embedding_type="absolute",
        emb_layer_norm_before=True,
        token_dropout=True,
        **SIZES,
    )
    return save_model(directory, config, seed)


def write_prot_bert(directory: Path) -> str:
    """Write a model of ProtBert's kind, whose tokenizer wants spaces between residues."""
    directory.mkdir(exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
    (directory / "vocab.txt").write_text("\n".join(tokens))
    transformers.BertTokenizer(str(directory / "vocab.txt"), do_lower_case=False).save_pretrained(
        directory
    )
    config = transformers.BertConfig(
        vocab_size=len(tokens), max_position_embeddings=1100, pad_token_id=0, **SIZES
    )
    return save_model(directory, config, seed=0)


def write_nucleotide_transformer(directory: Path, seed: int = 0) -> str:
    """Write a model of the nucleotide-transformer's kind, which reads words of 6 bases."""
    directory.mkdir(exist_ok=True)
    words = ["".join(word) for word in itertools.product("ATCG", repeat=6)]
    tokens = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>", *words, *"ATCGN"]
    write_esm_tokenizer(directory, tokens)
    config = transformers.EsmConfig(
        vocab_size=len(tokens),
        pad_token_id=1,
        mask_token_id=2,
        max_position_embeddings=1100,
        position_embedding_type="absolute",
        token_dropout=False,
        **SIZES,
    )
    return save_model(directory, config, seed)


class TestEsm1bContract(BackendContract):
    def make_backend(self) -> Backend:
        return backend

    def make_weights(self, directory: Path, seed: int) -> str:
        return write_esm1b(directory, seed)


class TestNucleotideTransformerContract(BackendContract):
    letters_per_token = 6
    # The last bases of a sequence, and those around an N, are tokens of one base.
    cost_factor = 2.0

    def make_backend(self) -> Backend:
        return dna_backend

    def make_weights(self, directory: Path, seed: int) -> str:
        return write_nucleotide_transformer(directory, seed)


def embed(one: Backend, path: Path, sequences: list[str]) -> torch.Tensor:
    weights = one.open_weights(str(path))
    encoder = one.load_encoder(
        weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
    )
    batch = one.load_collator(weights)(np.arange(len(sequences)), sequences)
    with torch.inference_mode():
        return encoder(batch)


PROTEINS = [*make_proteins((166, 1, 1200, 33)), "MKXBUZO"]


def test_the_numbers_are_those_of_esm2(tmp_path: Path) -> None:
    write_esm2(tmp_path)
    wanted_BE = embed(esm2, tmp_path, PROTEINS)
    assert largest_difference(embed(backend, tmp_path, PROTEINS), wanted_BE) < 1e-5


def test_the_numbers_of_trained_weights_are_those_of_esm2(shared: Path) -> None:
    path = shared / "esm2_8m"
    if not path.is_dir():
        pytest.skip("no trained ESM-2 beside this checkout")
    wanted_BE = embed(esm2, path, PROTEINS)
    assert largest_difference(embed(backend, path, PROTEINS), wanted_BE) < 1e-5


def test_a_protein_with_spaces_is_the_mean_over_its_residues(tmp_path: Path) -> None:
    location = write_prot_bert(tmp_path)
    protein = "MKTAYIAKQRX"
    tokenizer = transformers.AutoTokenizer.from_pretrained(location)
    model = transformers.AutoModel.from_pretrained(location).eval()
    ids = tokenizer(" ".join(protein), return_tensors="pt")
    assert ids["input_ids"].shape == (1, len(protein) + 2)
    with torch.inference_mode():
        wanted_E = model(**ids).last_hidden_state[0, 1:-1].mean(0)
    assert torch.allclose(embed(backend, tmp_path, ["MK", protein])[1], wanted_E, atol=1e-6)


def test_a_model_with_few_positions_cuts_earlier(tmp_path: Path) -> None:
    write_esm1b(tmp_path, num_positions=64)
    long = make_proteins((100,))[0]
    # 64 positions, from behind the padding's number on: 62 tokens, of which two are special.
    first_BE = embed(backend, tmp_path, [long, long[:60]])
    assert torch.equal(first_BE[0], first_BE[1])
    assert not torch.equal(embed(backend, tmp_path, [long[:59]])[0], first_BE[0])


# Training


def test_a_model_with_a_pooler_and_dropout_is_trained_without_both(tmp_path: Path) -> None:
    weights = backend.open_weights(write_prot_bert(tmp_path))
    model = backend.load_trainable(weights, dtype=torch.float32, device=torch.device("cpu"))
    proteins = ["MKTAYIAKQRX", "MK"]
    batch = backend.load_collator(weights)(np.arange(2), proteins)
    embedding_BE = model.requires_grad_(True).train()(batch)
    assert torch.equal(embedding_BE, embed(backend, tmp_path, proteins))
    embedding_BE.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    linears = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert {name.rpartition(".")[2] for name in linears} <= set(backend.info.linear_layers)


def test_changes_are_merged_before_rounding(tmp_path: Path) -> None:
    weights = backend.open_weights(write_prot_bert(tmp_path))
    half = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "attention": "auto"}
    name = "model.encoder.layer.1.attention.self.key.weight"
    plain = backend.load_encoder(weights, **half)
    exact = backend.load_trainable(weights, dtype=torch.float32, device=torch.device("cpu"))
    change = LowRank(torch.full((1, 32), 0.01), torch.full((32, 1), 0.01))
    changed = backend.load_encoder(weights, **half, changes={name: change})
    wanted = apply_change(exact.get_parameter(name), change).bfloat16()
    assert torch.equal(changed.get_parameter(name), wanted)
    assert not torch.equal(changed.get_parameter(name), plain.get_parameter(name))
    assert not torch.equal(apply_change(plain.get_parameter(name), change).bfloat16(), wanted)
    norm = "model.embeddings.LayerNorm.weight"
    assert torch.equal(changed.get_parameter(norm), plain.get_parameter(norm))


# What is refused


def test_a_model_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    write_esm2(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}})
    )
    (tmp_path / "code.py").write_text("raise SystemExit('executed')\n")
    with pytest.raises(WeightsError, match="transformers cannot read it"):
        backend.open_weights(str(tmp_path))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return print, ("executed",)

    location = write_esm1b(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: refused"):
        backend.open_weights(location)


def test_weights_in_a_pickle_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_esm1b(tmp_path)
    wanted_BE = embed(backend, tmp_path, ["MKTAYIAKQR"])
    path = tmp_path / "model.safetensors"
    torch.save(load_file(path), tmp_path / "pytorch_model.bin")
    path.unlink()
    assert torch.equal(embed(backend, tmp_path, ["MKTAYIAKQR"]), wanted_BE)


def test_settings_of_another_model_are_refused(tmp_path: Path) -> None:
    location = write_esm1b(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    for name, value in (("hidden_size", 48), ("num_hidden_layers", 10**9), ("hidden_size", "x")):
        path.write_text(json.dumps(settings | {name: value}))
        with pytest.raises(WeightsError, match=str(tmp_path)):
            backend.open_weights(location)


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    write_esm2(tmp_path)
    config = transformers.T5Config(d_model=32, num_layers=1, vocab_size=33)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(WeightsError, match="is a model with a decoder"):
        backend.open_weights(str(tmp_path))


def test_a_tokenizer_of_the_other_alphabet_is_refused(tmp_path: Path) -> None:
    weights = backend.open_weights(write_nucleotide_transformer(tmp_path))
    with pytest.raises(WeightsError, match="does not read protein letters"):
        backend.load_collator(weights)


def test_a_missing_tensor_is_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    location = write_esm1b(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layer.1.intermediate.dense.weight" in name)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    weights = backend.open_weights(location)
    with pytest.raises(WeightsError, match=r"1 tensor .*layer\.1\.intermediate\.dense\.weight"):
        backend.load_encoder(
            weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
        )


def test_the_tokenizer_belongs_to_the_identity(tmp_path: Path) -> None:
    location = write_esm1b(tmp_path / "first")
    other = shutil.copytree(tmp_path / "first", tmp_path / "other")
    words = (other / "vocab.txt").read_text().split()
    words[4], words[5] = words[5], words[4]
    (other / "vocab.txt").write_text("\n".join(words))
    identities = {backend.open_weights(str(path)).identity for path in (location, other)}
    assert len(identities) == 2


def test_flash_attention_that_is_not_there_is_refused(tmp_path: Path) -> None:
    weights = backend.open_weights(write_esm1b(tmp_path))
    with pytest.raises(UsageError, match="attention flash"):
        backend.load_encoder(
            weights, dtype=torch.bfloat16, device=torch.device("cpu"), attention="flash"
        )


def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = write_esm1b(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'virnucpro\[transformers\]'`"):
        backend.open_weights(location)


def test_loading_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_esm1b(tmp_path)
    capfd.readouterr()
    embed(backend, tmp_path, ["MK"])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert logging.getLogger("transformers").level != logging.ERROR

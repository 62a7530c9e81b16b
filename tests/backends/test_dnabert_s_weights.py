"""Reading the published files of DNABERT-S and DNABERT-2, and refusing every kind of bad file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from virnucpro_dnabert_s import backend

from tools.make_dnabert_s_weights import make_config, write_weights
from virnucpro.backend.interface import Encoder
from virnucpro.embedding.models import open_model
from virnucpro.errors import WeightsError

SEQUENCES = ["ACGTTGCAAC" * 40, "ACNNGT", "G"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in DNABERT-S's layout, as pytorch_model.bin; not to be changed."""
    return write_weights(tmp_path_factory.mktemp("dnabert-s"))


@pytest.fixture
def directory(published: Path, tmp_path: Path) -> Path:
    """A copy of `published` to change."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def load(directory: Path) -> Encoder:
    weights = backend.open_weights(str(directory))
    return backend.load_encoder(
        weights, dtype=torch.float32, device=torch.device("cpu"), attention="auto"
    )


def embed(directory: Path, encoder: Encoder | None = None) -> torch.Tensor:
    collate = backend.load_collator(backend.open_weights(str(directory)))
    with torch.inference_mode():
        return (encoder or load(directory))(collate(np.arange(len(SEQUENCES)), SEQUENCES))


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(
    directory: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = directory / "pytorch_model.bin"
    torch.save(edit(torch.load(path, weights_only=True)), path)


def make_sharded(directory: Path) -> None:
    tensors = torch.load(directory / "pytorch_model.bin", weights_only=True)
    (directory / "pytorch_model.bin").unlink()
    weight_map = {}
    for number in (0, 1):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        names = sorted(tensors)[number::2]
        save_file({key: tensors[key] for key in names}, directory / name)
        weight_map |= dict.fromkeys(names, name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)


def test_every_layout_gives_the_same_vectors(published: Path, tmp_path: Path) -> None:
    expected = embed(published)
    safe = write_weights(tmp_path / "safe", safetensors=True)
    second = write_weights(tmp_path / "second", layout="dnabert-2")
    sharded = Path(shutil.copytree(published, tmp_path / "sharded"))
    make_sharded(sharded)
    for directory in (safe, second, sharded):
        assert torch.equal(embed(directory), expected), directory.name


def test_pad_ids_change_no_vector(directory: Path) -> None:
    expected = embed(directory)
    edit_config(directory, pad_token_id=3)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer |= {"truncation": None, "padding": None}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert torch.equal(embed(directory), expected)


def test_made_layouts_are_the_published_ones(tmp_path: Path) -> None:
    config = make_config(num_layers=12, width=12, feed_forward=8, vocab_size=16)
    dnabert_s = write_weights(tmp_path / "s", config, safetensors=True)
    dnabert_2 = write_weights(tmp_path / "2", config, layout="dnabert-2", safetensors=True)
    assert len(load_file(dnabert_s / "model.safetensors")) == 138
    names = load_file(dnabert_2 / "model.safetensors").keys()
    assert len(names) == 142
    assert {name.split(".")[0] for name in names} == {"bert", "cls"}


def test_a_weights_file_stands_for_its_directory(published: Path) -> None:
    of_directory = backend.open_weights(str(published))
    of_file = backend.open_weights(str(published / "pytorch_model.bin"))
    assert of_file.identity == of_directory.identity
    assert of_file.embedding_dim == of_directory.embedding_dim == make_config().hidden_size


def test_identity_covers_every_file(directory: Path) -> None:
    def identity() -> str:
        return backend.open_weights(str(directory)).identity

    identities = [identity()]
    edit_tensors(directory, lambda tensors: {name: tensors[name] + 1 for name in tensors})
    identities.append(identity())
    edit_config(directory, layer_norm_eps=1e-5)
    identities.append(identity())
    (directory / "tokenizer.json").write_text((directory / "tokenizer.json").read_text() + "\n")
    identities.append(identity())
    assert len(set(identities)) == 4


def test_loaded_model_does_not_hang_on_its_file(published: Path, directory: Path) -> None:
    model = load(directory)
    path = directory / "pytorch_model.bin"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(embed(published, model), embed(published))


def refused(directory: Path, match: str) -> None:
    with pytest.raises(WeightsError, match=match):
        backend.open_weights(str(directory))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    refused(directory, f"holds no {name}")


def test_missing_tensors_file(directory: Path) -> None:
    (directory / "pytorch_model.bin").unlink()
    refused(directory, "neither model.safetensors nor pytorch_model.bin")


def test_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file or directory")


@pytest.mark.parametrize("safetensors", [False, True])
def test_truncated_tensors(tmp_path: Path, safetensors: bool) -> None:
    write_weights(tmp_path, safetensors=safetensors)
    path = tmp_path / ("model.safetensors" if safetensors else "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:-5000])
    refused(tmp_path, path.name)


def test_malicious_pickle_is_not_run(directory: Path) -> None:
    trace = directory / "was-run"

    class Malice:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (trace,))

    torch.save({"pooler.dense.bias": Malice()}, directory / "pytorch_model.bin")
    refused(directory, "refused, because it is damaged, or loading it could run code")
    assert not trace.exists()


def test_missing_tensor_is_named(directory: Path) -> None:
    name = "encoder.layer.1.mlp.wo.bias"
    edit_tensors(directory, lambda tensors: {key: tensors[key] for key in tensors if key != name})
    refused(directory, rf"1 tensor \({name}\) missing, 0 tensors of another")


def test_plain_bert_is_refused(directory: Path) -> None:
    def as_plain_bert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        plain = {"embeddings.position_embeddings.weight": torch.zeros(512, 48)}
        for name, tensor in tensors.items():
            if "Wqkv" in name:
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    plain[name.replace("Wqkv", part)] = piece.clone()
            else:
                plain[name] = tensor
        return plain

    edit_tensors(directory, as_plain_bert)
    refused(
        directory,
        r"Wqkv.* missing, .*\(embeddings.position_embeddings.*\.key\..*of another architecture",
    )


def test_esm_directory_is_refused(directory: Path) -> None:
    edit_config(directory, model_type="esm")
    refused(directory, "a model of type 'esm'; DNABERT-S's is of type 'bert'")


def test_other_sizes_than_in_the_config_are_refused(directory: Path) -> None:
    edit_config(directory, intermediate_size=100)
    refused(directory, r"gated_layers.weight has shape \(192, 48\), .* ask for \(200, 48\)")


def test_other_number_of_layers_than_in_the_config_is_refused(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=1)
    refused(directory, r"0 tensors missing, 11 tensors \(encoder.layer.1.*of another architecture")


def test_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    edit_config(directory, vocab_size=200)
    refused(directory, "has the token id 255, but the model's vocab_size is 200")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 7}, "hidden_size 48 is not a multiple of num_attention_heads 7"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', which changes the numbers"),
        ({"rope_theta": 10000.0}, "rope_theta is 10000.0"),
        ({"quantization_config": {"bits": 8}}, "quantization_config is"),
    ],
)
def test_senseless_sizes_are_refused(
    directory: Path, changes: dict[str, object], match: str
) -> None:
    edit_config(directory, **changes)
    refused(directory, match)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_json(directory: Path, name: str) -> None:
    path = directory / name
    path.write_text(path.read_text()[:100])
    refused(directory, name)


@pytest.mark.parametrize("size", [10**9, 2**63])
@pytest.mark.parametrize("name", ["num_hidden_layers", "vocab_size", "type_vocab_size"])
def test_sizes_that_no_tensor_has_are_refused_before_a_model_is_made(
    directory: Path, name: str, size: int
) -> None:
    edit_config(directory, **{name: size})
    refused(directory, f"{name} is {size}, and the tensors have no size above 256")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(256, 48).to_sparse(),
        torch.ones(256, 48, device="meta"),
        torch.ones(1).expand(10**6, 48),
    ],
)
def test_strange_tensors_are_refused(directory: Path, tensor: torch.Tensor) -> None:
    edit_tensors(directory, lambda tensors: tensors | {"embeddings.word_embeddings.weight": tensor})
    refused(directory, "is no ordinary tensor|does not fit in|cannot be read as a")


def test_names_that_are_no_text_are_refused(directory: Path) -> None:
    edit_tensors(directory, lambda tensors: {1: torch.ones(1)})
    refused(directory, "a plain state dict was expected, found a dict where 1 is a Tensor")


def edit_tokenizer(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def grow(letter: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": letter}, "content": letter * 1_000}


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Sequence", "normalizers": [grow("A")] * 4},
        {"type": "Replace", "pattern": {"Regex": "A*"}, "content": "A"},
        {"type": "Replace", "pattern": {"String": ""}, "content": ""},
        {"type": "Prepend", "prepend": "A" * 1_000},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [grow("A")]}]},
    ],
)
def test_tokenizers_that_make_text_without_end_are_refused(directory: Path, step: object) -> None:
    edit_tokenizer(directory, lambda document: document.update(normalizer=step))
    refused(directory, "refused, because of its normalizer .*could take all memory or time")


@pytest.mark.parametrize("regex", ["(A|A)*$", "(.*)*x", r"\1(A)", "A+A+A+x"])
def test_tokenizers_that_search_without_end_are_refused(directory: Path, regex: str) -> None:
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    edit_tokenizer(directory, lambda document: document.update(pre_tokenizer=step))
    refused(directory, "refused, because of its pre_tokenizer .*could take all memory or time")


def test_token_ids_beyond_the_vocabulary_are_refused(directory: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        words = document["model"]["vocab"]
        words.update({word: number + 100_000 for word, number in words.items() if number > 9})

    edit_tokenizer(directory, move)
    refused(directory, "has the token id 100255, but the model's vocab_size is 256")


def test_special_tokens_beyond_the_vocabulary_are_refused(directory: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        document["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [10**6]

    edit_tokenizer(directory, move)
    refused(directory, "has the token id 1000000, but")


def test_special_tokens_without_end_are_refused(directory: Path) -> None:
    def repeat(document: dict[str, Any]) -> None:
        token = document["post_processor"]["special_tokens"]["[SEP]"]
        token.update(ids=token["ids"] * 10_000, tokens=token["tokens"] * 10_000)

    edit_tokenizer(directory, repeat)
    refused(directory, "makes .* tokens of 113 letters")


BREAKING = {
    "opening": {"model": {"type": "BPE", "vocab": {"A": 0}, "unk_token": "x", "merges": ["A A"]}},
    "tokenizing": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("edits", BREAKING.values(), ids=BREAKING)
def test_tokenizers_that_break_the_library_are_one_error(
    directory: Path, edits: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    edit_tokenizer(directory, lambda document: document.update(edits))
    refused(directory, r"tokenizer\.json: breaks the library that reads it")
    assert capfd.readouterr().err == ""


def test_letters_that_a_tokenizer_does_not_know_are_noticed_before_they_are_read(
    directory: Path,
) -> None:
    words = {letter: number for number, letter in enumerate("ACGTN")}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "x"}
    letters = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    edit_tokenizer(directory, lambda each: each.update(model=model, pre_tokenizer=letters))
    with pytest.raises(WeightsError, match=r"cannot be opened .* Missing"):
        open_model("dnabert-s", str(directory))


def test_random_tokens_are_refused(directory: Path) -> None:
    edit_tokenizer(directory, lambda document: document["model"].update(dropout=0.5))
    refused(directory, "dropout makes its tokens random")


def test_old_names_of_layer_norms_are_read(directory: Path) -> None:
    before = embed(directory)

    def give_old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        new_to_old = {"ayernorm.weight": "ayernorm.gamma", "ayernorm.bias": "ayernorm.beta"}
        new_to_old |= {"ayerNorm.weight": "ayerNorm.gamma", "ayerNorm.bias": "ayerNorm.beta"}
        renamed = {}
        for name, tensor in tensors.items():
            for new, old in new_to_old.items():
                name = name.replace(new, old)
            renamed[name] = tensor
        assert any(name.endswith("layernorm.gamma") for name in renamed)
        return renamed

    edit_tensors(directory, give_old_names)
    assert torch.equal(embed(directory), before)

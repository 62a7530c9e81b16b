"""The DNABERT-S backend against a plain reference, and against every kind of bad file."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from virnucpro_dnabert_s import backend
from virnucpro_dnabert_s.model import DnabertS, ModelConfig, alibi_slopes
from virnucpro_dnabert_s.tokens import BpeCollator
from virnucpro_dnabert_s.weights import make_meta_model

from tools.make_dnabert_s_weights import REAL_SIZES, Sizes, make_tensors, write_weights
from virnucpro.errors import UsageError, WeightsError
from virnucpro.interface import Attention, TokenBatch

CPU = torch.device("cpu")
MIXED_LENGTHS = [1, 2, 3, 8, 9, 64, 109, 500]
PUBLISHED_TOKENIZER = (
    Path(__file__).resolve().parents[2] / "../shared/dnabert_s_tokenizer/tokenizer.json"
)

# Largest deviation relative to the largest entry, that each precision is held to on a GPU.
HALF_PRECISION_BOUNDS = {torch.bfloat16: 5e-2, torch.float16: 1e-2}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 12 heads in DNABERT-S's layout, as pytorch_model.bin; not to be changed."""
    return write_weights(tmp_path_factory.mktemp("dnabert-s"))


@pytest.fixture
def directory(published: Path, tmp_path: Path) -> Path:
    """A copy of `published` to change."""
    return Path(shutil.copytree(published, tmp_path / "model"))


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cuda")


def load(
    directory: Path,
    attention: Attention = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> DnabertS:
    weights = backend.open_weights(str(directory))
    model = backend.load_encoder(weights, dtype=dtype, device=device, attention=attention)
    assert isinstance(model, DnabertS)
    return model


def embed(model: DnabertS, sequences: list[torch.Tensor]) -> torch.Tensor:
    """Embed tokenized sequences as one batch."""
    device = model.word_embeddings.weight.device
    lengths = torch.tensor([len(ids) for ids in sequences])
    batch = TokenBatch(
        token_ids_T=torch.cat(sequences).to(device),
        lengths_B=lengths.to(device),
        max_length=int(lengths.max()),
        rows=np.arange(len(sequences)),
    )
    with torch.inference_mode():
        return model(batch).cpu()


def embed_dna(directory: Path, sequences: list[str]) -> torch.Tensor:
    weights = backend.open_weights(str(directory))
    batch = backend.load_collator(weights)(np.arange(len(sequences)), sequences)
    with torch.inference_mode():
        return load(directory)(batch)


def random_tokens(lengths: list[int], vocab_size: int = Sizes.vocab_size) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


def relative_deviation(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


def reference_slopes(num_heads: int) -> list[float]:
    """The recursion of the ALiBi paper's own code."""
    if math.log2(num_heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(num_heads) - 3)))
        return [start ** (head + 1) for head in range(num_heads)]
    lower = 2 ** math.floor(math.log2(num_heads))
    return reference_slopes(lower) + reference_slopes(2 * lower)[::2][: num_heads - lower]


def reference_embedding(
    tensors: dict[str, torch.Tensor], num_layers: int, num_heads: int, ids: torch.Tensor
) -> torch.Tensor:
    """One sequence through DNABERT-S, head by head, from the published tensors' names."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = tensors.get(f"{name}.bias")
        product = x @ tensors[f"{name}.weight"].T
        return product if bias is None else product + bias

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-12).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    words = tensors["embeddings.word_embeddings.weight"][ids]
    x = norm("embeddings.LayerNorm", words + tensors["embeddings.token_type_embeddings.weight"][0])
    width, inner = x.shape[1], tensors["encoder.layer.0.mlp.wo.weight"].shape[1]
    head_width = width // num_heads
    positions = torch.arange(len(ids)).float()
    distance = (positions[None, :] - positions[:, None]).abs()
    for layer in range(num_layers):
        prefix = f"encoder.layer.{layer}"
        query, key, value = linear(f"{prefix}.attention.self.Wqkv", x).split(width, dim=1)
        contexts = []
        for head, slope in enumerate(reference_slopes(num_heads)):
            part = slice(head * head_width, (head + 1) * head_width)
            scores = query[:, part] @ key[:, part].T / math.sqrt(head_width) - slope * distance
            contexts.append(torch.softmax(scores, dim=1) @ value[:, part])
        context = linear(f"{prefix}.attention.output.dense", torch.cat(contexts, dim=1))
        x = norm(f"{prefix}.attention.output.LayerNorm", context + x)
        gated = linear(f"{prefix}.mlp.gated_layers", x)
        fed = linear(f"{prefix}.mlp.wo", gelu(gated[:, :inner]) * gated[:, inner:])
        x = norm(f"{prefix}.mlp.layernorm", fed + x)
    return x.mean(dim=0)


# The network


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("num_heads", "width"), [(12, 48), (8, 64), (4, 32), (5, 40)])
def test_equals_the_reference_alone_and_among_others(
    num_heads: int, width: int, attention: Attention, tmp_path: Path
) -> None:
    sizes = Sizes(num_layers=3, num_heads=num_heads, width=width, feed_forward=2 * width)
    model = load(write_weights(tmp_path, sizes), attention)
    tensors = make_tensors(sizes, seed=0)
    sequences = random_tokens(MIXED_LENGTHS)
    expected = torch.stack(
        [reference_embedding(tensors, sizes.num_layers, num_heads, ids) for ids in sequences]
    )
    together = embed(model, sequences)
    alone = torch.cat([embed(model, [ids]) for ids in sequences])
    assert together.dtype == torch.float32
    assert relative_deviation(together, expected) < 2e-5
    assert relative_deviation(alone, expected) < 2e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equals_the_reference_over_3000_tokens(tmp_path: Path, attention: Attention) -> None:
    sizes = Sizes(num_layers=1)
    model = load(write_weights(tmp_path, sizes), attention)
    sequences = random_tokens([3000, 7])
    tensors = make_tensors(sizes, seed=0)
    expected = torch.stack(
        [reference_embedding(tensors, 1, sizes.num_heads, ids) for ids in sequences]
    )
    assert relative_deviation(embed(model, sequences), expected) < 2e-5


def test_a_broken_neighbour_changes_nothing(published: Path) -> None:
    model = load(published)
    broken_token = 17
    sound, broken = torch.tensor([1, 9, 10, 11, 2]), torch.tensor([1, broken_token, 2])
    expected = embed(model, [sound, torch.tensor([1, 9, 2])])
    with torch.no_grad():
        model.word_embeddings.weight[broken_token] = torch.nan
    result = embed(model, [sound, broken])
    assert torch.equal(result[0], expected[0])
    assert result[1].isnan().all()


def test_slopes_for_twelve_heads() -> None:
    exponents = [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]
    assert alibi_slopes(12, CPU).tolist() == pytest.approx([2**-e for e in exponents])


@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 6, 7, 16, 20])
def test_slopes_for_any_number_of_heads(num_heads: int) -> None:
    assert alibi_slopes(num_heads, CPU).tolist() == pytest.approx(reference_slopes(num_heads))


def test_real_size_holds_the_published_parameters_without_the_pooler() -> None:
    sizes = REAL_SIZES
    model = make_meta_model(
        ModelConfig(
            vocab_size=sizes.vocab_size,
            type_vocab_size=2,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.feed_forward,
            layer_norm_eps=1e-12,
        )
    )
    pooler = sizes.width * sizes.width + sizes.width
    assert sum(tensor.numel() for tensor in model.parameters()) == 117_068_544 - pooler
    assert len(model.state_dict()) == 138 - 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32_on_the_cpu(published: Path, dtype: torch.dtype) -> None:
    sequences = random_tokens(MIXED_LENGTHS)
    expected = embed(load(published, "eager"), sequences)
    model = load(published, "sdpa", dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    result = embed(model, sequences)
    assert result.dtype == torch.float32
    assert relative_deviation(result, expected) < HALF_PRECISION_BOUNDS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_float32_on_a_gpu_equals_the_cpu(
    published: Path, attention: Attention, cuda: torch.device
) -> None:
    sequences = random_tokens(MIXED_LENGTHS)
    expected = embed(load(published, "eager"), sequences)
    result = embed(load(published, attention, device=cuda), sequences)
    assert relative_deviation(result, expected) < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"])
def test_half_precision_on_a_gpu_stays_near_float32(
    attention: Attention, dtype: torch.dtype, cuda: torch.device, tmp_path: Path
) -> None:
    if attention == "flash":
        pytest.importorskip("flash_attn")
    # Heads of the real width: flash-attn takes no head of 4.
    published = write_weights(tmp_path, Sizes(width=768, feed_forward=1536))
    sequences = random_tokens(MIXED_LENGTHS)
    expected = embed(load(published, "eager"), sequences)
    result = embed(load(published, attention, dtype, cuda), sequences)
    assert relative_deviation(result, expected) < HALF_PRECISION_BOUNDS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_forward_never_waits_for_the_gpu(
    published: Path, attention: Attention, cuda: torch.device
) -> None:
    model = load(published, attention, device=cuda)
    token_ids = random_tokens([9, 5])
    batch = TokenBatch(
        torch.cat(token_ids).to(cuda), torch.tensor([9, 5]).to(cuda), 9, np.arange(2)
    )
    with torch.inference_mode():
        model(batch)  # makes the slopes
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_flash_is_refused_on_a_cpu(published: Path) -> None:
    with pytest.raises(UsageError, match=r"fp16 or bf16 on a GPU, not in torch\.float32 on cpu"):
        load(published, "flash")


def test_flash_is_refused_without_flash_attn(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(UsageError, match="needs the package flash-attn"):
        load(published, "flash", torch.bfloat16, torch.device("cuda"))


# Tokens


@pytest.mark.skipif(not PUBLISHED_TOKENIZER.is_file(), reason="needs the published tokenizer.json")
def test_published_tokenizer() -> None:
    collate = BpeCollator(PUBLISHED_TOKENIZER)
    sequences = ["ACGTAGCATCGGATCTATCTATCGACACTTGGTTATCGATCTACGAGCATCTCGTTAGC", "ANu-A", ""]
    batch = collate(np.array([3, 1, 4]), sequences)
    expected = [1, 5, 194, 32, 757, 1239, 2092, 294, 24, 359, 88, 93, 32, 75, 77, 19, 2]
    assert batch.token_ids_T.tolist() == [*expected, 1, 5, 0, 0, 0, 5, 2, 1, 2]
    assert batch.lengths_B.tolist() == [17, 7, 2]
    assert batch.max_length == 17
    assert batch.rows.tolist() == [3, 1, 4]


@pytest.mark.skipif(not PUBLISHED_TOKENIZER.is_file(), reason="needs the published tokenizer.json")
@pytest.mark.parametrize("num_unknown", [0, 40, 500])
def test_token_cost_is_near_the_published_tokenizer(num_unknown: int) -> None:
    rng = np.random.default_rng(1)
    sequences = [
        "".join(rng.choice(list("ACGT"), 500 - num_unknown)) + "N" * num_unknown for _ in range(20)
    ]
    lengths = BpeCollator(PUBLISHED_TOKENIZER)(np.arange(20), sequences).lengths_B
    costs = [backend.token_cost(sequence) for sequence in sequences]
    np.testing.assert_allclose(costs, lengths, rtol=0.1)


def test_stored_truncation_and_padding_are_ignored(published: Path) -> None:
    stored = json.loads((published / "tokenizer.json").read_text())
    assert stored["truncation"]["max_length"] == stored["padding"]["strategy"]["Fixed"] == 2000
    collate = backend.load_collator(backend.open_weights(str(published)))
    assert collate(np.arange(2), ["N" * 2500, "A"]).lengths_B.tolist() == [2502, 3]


def test_pad_ids_change_no_vector(directory: Path) -> None:
    sequences = ["ACGTTGCA" * 30, "ACG"]
    expected = embed_dna(directory, sequences)
    edit_config(directory, pad_token_id=3)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer |= {"truncation": None, "padding": None}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert torch.equal(embed_dna(directory, sequences), expected)


def test_collator_survives_pickling(published: Path) -> None:
    collate = backend.load_collator(backend.open_weights(str(published)))
    rows, sequences = np.arange(2), ["ACGTTGCA" * 300, "N" * 2100]
    expected = collate(rows, sequences)
    result = pickle.loads(pickle.dumps(collate))(rows, sequences)
    assert torch.equal(result.token_ids_T, expected.token_ids_T)
    assert torch.equal(result.lengths_B, expected.lengths_B)


# Files


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
    sequences = ["ACGTTGCAAC" * 40, "ACNNGT", "G"]
    expected = embed_dna(published, sequences)
    safe = write_weights(tmp_path / "safe", safetensors=True)
    second = write_weights(tmp_path / "second", layout="dnabert-2")
    sharded = Path(shutil.copytree(published, tmp_path / "sharded"))
    make_sharded(sharded)
    for directory in (safe, second, sharded):
        assert torch.equal(embed_dna(directory, sequences), expected), directory.name


def test_made_layouts_are_the_published_ones(tmp_path: Path) -> None:
    sizes = Sizes(num_layers=12, width=12, feed_forward=8, vocab_size=16)
    dnabert_s = write_weights(tmp_path / "s", sizes, safetensors=True)
    dnabert_2 = write_weights(tmp_path / "2", sizes, layout="dnabert-2", safetensors=True)
    assert len(load_file(dnabert_s / "model.safetensors")) == 138
    names = load_file(dnabert_2 / "model.safetensors").keys()
    assert len(names) == 142
    assert {name.split(".")[0] for name in names} == {"bert", "cls"}


def test_a_weights_file_stands_for_its_directory(published: Path) -> None:
    of_directory = backend.open_weights(str(published))
    of_file = backend.open_weights(str(published / "pytorch_model.bin"))
    assert of_file.identity == of_directory.identity
    assert of_file.embedding_dim == of_directory.embedding_dim == Sizes().width


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


def test_loaded_model_does_not_hang_on_its_file(directory: Path) -> None:
    model = load(directory)
    before = embed(model, random_tokens([9]))
    path = directory / "pytorch_model.bin"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(embed(model, random_tokens([9])), before)


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
    refused(directory, "refused, because loading it could run code")
    assert not trace.exists()


def test_missing_tensor_is_named(directory: Path) -> None:
    name = "encoder.layer.1.mlp.wo.bias"
    edit_tensors(directory, lambda tensors: {key: tensors[key] for key in tensors if key != name})
    refused(directory, rf"1 tensors missing \({name}")


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
    refused(directory, r"Wqkv.*of another architecture \(embeddings.position_embeddings.*\.key\.")


def test_esm_directory_is_refused(directory: Path) -> None:
    edit_config(directory, model_type="esm")
    refused(directory, "a model of type 'esm'; DNABERT-S's is of type 'bert'")


def test_other_sizes_than_in_the_config_are_refused(directory: Path) -> None:
    edit_config(directory, intermediate_size=100)
    refused(directory, r"gated_layers.weight is of shape \(192, 48\).* make it \(200, 48\)")


def test_other_number_of_layers_than_in_the_config_is_refused(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=1)
    refused(directory, r"0 tensors missing, 11 tensors of another architecture \(encoder.layer.1")


def test_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    edit_config(directory, vocab_size=200)
    refused(directory, "has 256 tokens, but the model's vocab_size is 200")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 7}, "hidden_size 48 is no multiple of num_attention_heads 7"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
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


def test_backend_is_light() -> None:
    code = (
        "import sys; from virnucpro_dnabert_s import backend; backend.token_cost('ACGT');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'tokenizers', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

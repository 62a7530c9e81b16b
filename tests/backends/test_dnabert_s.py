"""The DNABERT-S network against a plain reference, and its tokens against the published ones."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from virnucpro_dnabert_s import backend
from virnucpro_dnabert_s.attention import alibi_slopes, attention_bias
from virnucpro_dnabert_s.benchmarking import SIZES
from virnucpro_dnabert_s.model import DnabertS
from virnucpro_dnabert_s.tokens import BpeCollator, read_tokenizer
from virnucpro_dnabert_s.weights import make_meta_model, published_name

from tools.make_dnabert_s_weights import make_config, make_random_tensors, write_weights
from virnucpro.backend.changes import Change, LowRank, apply_change
from virnucpro.backend.interface import Attention, Backend, TokenBatch
from virnucpro.backend.testing import BackendContract
from virnucpro.errors import UsageError
from virnucpro.kernels import host_memory

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


def make_batch(sequences: list[torch.Tensor], device: torch.device = CPU) -> TokenBatch:
    lengths = torch.tensor([len(ids) for ids in sequences])
    return TokenBatch(
        token_ids_T=torch.cat(sequences).to(device),
        lengths_B=lengths.to(device),
        max_length=int(lengths.max()),
        rows=np.arange(len(sequences)),
    )


def embed(model: DnabertS, sequences: list[torch.Tensor]) -> torch.Tensor:
    """Embed tokenized sequences as one batch."""
    with torch.inference_mode():
        return model(make_batch(sequences, model.word_embeddings.weight.device)).cpu()


def random_tokens(lengths: list[int], vocab_size: int = 256) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


def relative_deviation(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_cpu_changes_nothing_that_all_threads_go_by(
    published: Path, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(_: object) -> None:
        raise AssertionError("switches kernels of the whole process")

    monkeypatch.setattr("virnucpro_dnabert_s.attention.sdpa_kernel", change)
    assert embed(load(published, attention), random_tokens([9] * 20)).isfinite().all()


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sequences_attend_in_blocks_of_queries(
    published: Path, attention: Attention, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(published, attention, dtype)
    sequences = random_tokens([61, 90, 7])
    whole = embed(model, sequences)
    most = 5000
    monkeypatch.setattr("virnucpro_dnabert_s.attention._MAX_BIAS_NUMBERS", most)
    made = []

    def make(*args: Any) -> torch.Tensor:
        made.append(attention_bias(*args))
        return made[-1]

    monkeypatch.setattr("virnucpro_dnabert_s.attention.attention_bias", make)
    in_blocks = embed(model, sequences)
    assert len(made) > 1
    assert max(bias.numel() for bias in made) <= most
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_deviation(in_blocks, whole) < bound


def test_a_sequence_beyond_the_memory_of_the_machine_is_refused(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(published)
    monkeypatch.setattr(host_memory, "_ALWAYS_THERE", 0)
    assert embed(model, random_tokens([50])).isfinite().all()
    monkeypatch.setattr(host_memory, "measure_free", lambda: 50_000)
    with pytest.raises(torch.OutOfMemoryError, match="bytes of memory are needed, 50,000 are free"):
        embed(model, random_tokens([50]))


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


class TestContract(BackendContract):
    def make_backend(self) -> Backend:
        return backend

    def make_weights(self, directory: Path, seed: int) -> str:
        return str(write_weights(directory, seed=seed))


# The network


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
@pytest.mark.parametrize(("num_heads", "width"), [(12, 48), (8, 64), (4, 32), (5, 40)])
def test_equals_the_reference_alone_and_among_others(
    num_heads: int, width: int, attention: Attention, tmp_path: Path
) -> None:
    config = make_config(3, width, num_heads, feed_forward=2 * width)
    model = load(write_weights(tmp_path, config), attention)
    tensors = make_random_tensors(config)
    sequences = random_tokens(MIXED_LENGTHS)
    expected = torch.stack([reference_embedding(tensors, 3, num_heads, ids) for ids in sequences])
    together = embed(model, sequences)
    alone = torch.cat([embed(model, [ids]) for ids in sequences])
    assert together.dtype == torch.float32
    assert relative_deviation(together, expected) < 2e-5
    assert relative_deviation(alone, expected) < 2e-5


@pytest.mark.slow
def test_equals_the_reference_over_3000_tokens(tmp_path: Path) -> None:
    # Three heads, because the reference computes one after the other.
    config = make_config(1, 24, 3)
    sequences = random_tokens([3000, 7])
    tensors = make_random_tensors(config)
    expected = torch.stack([reference_embedding(tensors, 1, 3, ids) for ids in sequences])
    path = write_weights(tmp_path, config)
    for attention in ("eager", "sdpa"):
        found = embed(load(path, attention), sequences)
        assert relative_deviation(found, expected) < 2e-5, attention


def test_the_gradients_of_every_parameter_equal_the_reference(tmp_path: Path) -> None:
    config = make_config(2, 40, 5, feed_forward=80)
    directory = write_weights(tmp_path, config)
    weights = backend.open_weights(str(directory))
    model = backend.load_trainable(weights, dtype=torch.float32, device=CPU).requires_grad_(True)
    tensors = {name: x.requires_grad_() for name, x in make_random_tensors(config).items()}
    # A large batch norms the vocabulary, and a small one its tokens.
    for lengths in (MIXED_LENGTHS, [9, 4]):
        sequences = random_tokens(lengths)
        probe_E = torch.arange(config.hidden_size)
        model.zero_grad()
        (model(make_batch(sequences)) * probe_E).sum().backward()
        expected = [reference_embedding(tensors, 2, 5, ids) for ids in sequences]
        loss = (torch.stack(expected) * probe_E).sum()
        names = [published_name(name) for name, _ in model.named_parameters()]
        gradients = torch.autograd.grad(loss, [tensors[name] for name in names])
        for (name, parameter), wanted in zip(model.named_parameters(), gradients, strict=True):
            assert parameter.grad is not None
            # The gradients of keys' biases are zero: softmax does not see what all keys share.
            scale = max(float(wanted.abs().max()), 1e-2)
            assert float((parameter.grad - wanted).abs().max()) < 2e-5 * scale, name


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changes_are_merged_before_anything_is_rounded(
    dtype: torch.dtype, attention: Attention, tmp_path: Path
) -> None:
    config = make_config(2, 48, 12, feed_forward=96)
    directory = write_weights(tmp_path / "weights", config, safetensors=True)
    generator = torch.Generator().manual_seed(3)
    tensors = load_file(directory / "model.safetensors")
    changes: dict[str, Change] = {"embedding_norm.bias": torch.linspace(-1, 1, 48)}
    for name in ("qkv", "attention_out", "gate_and_value", "mlp_out"):
        num_outputs, num_inputs = tensors[published_name(f"layers.1.{name}.weight")].shape
        changes[f"layers.1.{name}.weight"] = LowRank(
            torch.randn(4, num_inputs, generator=generator),
            torch.randn(num_outputs, 4, generator=generator) / 100,
        )
    weights = backend.open_weights(str(directory))
    model = backend.load_encoder(
        weights, dtype=dtype, device=CPU, attention=attention, changes=changes
    )
    sequences = random_tokens(MIXED_LENGTHS)
    before = embed(load(directory, attention, dtype), sequences)
    for name, change in changes.items():
        tensors[published_name(name)] = apply_change(tensors[published_name(name)], change)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    found = embed(model, sequences)
    assert torch.equal(found, embed(load(directory, attention, dtype), sequences))
    assert relative_deviation(found, before) > 0.1


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
    config = make_config(*SIZES["117M"])
    model = make_meta_model(config)
    pooler = config.hidden_size * (config.hidden_size + 1)
    assert sum(tensor.numel() for tensor in model.parameters()) == 117_068_544 - pooler
    assert len(model.state_dict()) == 138 - 2


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32_on_the_cpu(
    published: Path, dtype: torch.dtype, attention: Attention
) -> None:
    sequences = random_tokens(MIXED_LENGTHS)
    expected = embed(load(published, "eager"), sequences)
    model = load(published, attention, dtype)
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
@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa", "flash"])
def test_half_precision_on_a_gpu_stays_near_float32(
    attention: Attention, dtype: torch.dtype, cuda: torch.device, tmp_path: Path
) -> None:
    if attention == "flash":
        pytest.importorskip("flash_attn")
    # Heads of the real width: flash-attn takes no head of 4.
    published = write_weights(tmp_path, make_config(width=768, feed_forward=1536))
    sequences = random_tokens(MIXED_LENGTHS)
    expected = embed(load(published, "eager"), sequences)
    result = embed(load(published, attention, dtype, cuda), sequences)
    assert relative_deviation(result, expected) < HALF_PRECISION_BOUNDS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_a_gpu_stay_near_float32(
    dtype: torch.dtype, checkpointing: bool, cuda: torch.device, tmp_path: Path
) -> None:
    # Heads of the real width, for which the GPU has other kernels than for the contract's.
    directory = write_weights(tmp_path, make_config(width=768, feed_forward=1536))
    weights = backend.open_weights(str(directory))
    sequences = random_tokens(MIXED_LENGTHS)
    probe_E = torch.arange(768)
    exact = backend.load_trainable(weights, dtype=torch.float32, device=CPU).requires_grad_(True)
    (exact(make_batch(sequences)) * probe_E).sum().backward()
    model = backend.load_trainable(
        weights, dtype=dtype, device=cuda, gradient_checkpointing=checkpointing
    ).requires_grad_(True)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.float32):
        loss = (model(make_batch(sequences, cuda)) * probe_E.to(cuda)).sum()
    loss.backward()
    for (name, one), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        found_N, wanted_N = one.grad.float().cpu().flatten(), other.grad.flatten()
        assert torch.cosine_similarity(found_N, wanted_N, dim=0) > 0.95, name


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
def test_forward_never_waits_for_the_gpu(
    published: Path, attention: Attention, cuda: torch.device
) -> None:
    model = load(published, attention, torch.bfloat16, cuda)
    assert model.attention == ("fused" if attention == "auto" else attention)
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
    with pytest.raises(
        UsageError, match="needs a CUDA GPU and bf16 or fp16, found cpu and float32"
    ):
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


def test_the_fast_way_gives_the_same_tokens_without_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    path = write_weights(tmp_path / "weights") / "tokenizer.json"
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGTNRY-"), size)) for size in range(1, 400, 7)]
    batch = BpeCollator(path)(np.arange(len(sequences)), sequences)
    # The library reads it at each call. `write_weights` has started threads, so no count helps.
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    tokenizer = read_tokenizer(path)
    assert batch.token_ids_T.tolist() == [
        token for sequence in sequences for token in tokenizer.encode(sequence).ids
    ]


def test_a_worker_is_sent_the_tokenizers_path_alone(tmp_path: Path) -> None:
    collator = BpeCollator(write_weights(tmp_path / "weights") / "tokenizer.json")
    assert len(pickle.dumps(collator)) < 1_000

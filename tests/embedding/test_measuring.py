"""What the measuring counts: operations of the published models, tokens in a batch, cosines."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from virnucpro_dnabert_s.model import ModelConfig
from virnucpro_dnabert_s.weights import make_meta_model
from virnucpro_esm2 import backend as esm2
from virnucpro_esm2.benchmarking import SIZES, make_config
from virnucpro_esm2.model import Esm2
from virnucpro_esm2.tokens import Esm2Collator

from virnucpro.embedding.measuring import (
    count_flop_per_token,
    fill_batch,
    find_worst_cosine,
    make_sequences,
)
from virnucpro.kernels.float8 import Float8Linear
from virnucpro.kernels.onednn import PackedGated, PackedLinear, can_pack

CPU = torch.device("cpu")


def test_operations_are_those_of_the_published_sizes() -> None:
    esm2_3b = Esm2(make_config(*SIZES["3B"]), dtype=torch.float16)
    dnabert_s = make_meta_model(ModelConfig(4096, 2, 768, 12, 12, 3072, 1e-12))
    # 12 D^2 numbers in each of 36 layers of ESM-2; 4 D^2 and 3 D F in each of 12 of DNABERT-S.
    assert count_flop_per_token(esm2_3b) == 2 * 36 * 12 * 2560**2
    assert count_flop_per_token(dnabert_s) == 2 * 12 * (4 * 768**2 + 3 * 768 * 3072)


def test_layers_in_8_bits_count_as_the_others() -> None:
    linear = torch.nn.Linear(32, 48)
    assert count_flop_per_token(Float8Linear(linear)) == count_flop_per_token(linear) == 2 * 32 * 48


@pytest.mark.skipif(not can_pack(torch.float32, CPU), reason="needs oneDNN")
def test_packed_layers_count_as_the_others() -> None:
    weight = torch.randn(48, 32)
    assert count_flop_per_token(PackedLinear(weight, None)) == 2 * 32 * 48
    assert count_flop_per_token(PackedGated(weight)) == 2 * 32 * 48


@pytest.mark.parametrize("budget_tokens", [1, 168, 336, 2048])
def test_a_batch_is_as_full_as_in_a_run(budget_tokens: int) -> None:
    sequences = list(itertools.islice(make_sequences("protein", 500), 100))
    assert {len(sequence) for sequence in sequences} <= set(range(158, 167))
    batch = fill_batch(esm2, Esm2Collator(), sequences, budget_tokens)
    num_taken = len(batch.rows)
    assert num_taken == 1 or batch.max_length * num_taken <= budget_tokens
    with_one_more = max(len(sequence) + 2 for sequence in sequences[: num_taken + 1])
    assert with_one_more * (num_taken + 1) > budget_tokens


def test_a_vector_of_nan_is_not_close_to_anything() -> None:
    wanted = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert find_worst_cosine(2 * wanted, wanted) == pytest.approx(1.0)
    found = wanted.clone()
    found[1] = torch.nan
    assert find_worst_cosine(found, wanted) == -1.0


def test_random_weights_share_their_numbers_on_disk_but_differ_by_layer(tmp_path: Path) -> None:
    path = esm2.write_random_weights(tmp_path, "35M")
    assert path.stat().st_size < 8e6  # 33 M numbers of 2 bytes would be 67 MB
    weights = esm2.open_weights(str(path))
    encoder = esm2.load_encoder(weights, dtype=torch.float32, device=CPU, attention="eager")
    assert isinstance(encoder, Esm2)
    matrices = [layer.fc1.weight.numpy() for layer in encoder.layers]
    for one, other in itertools.combinations(matrices, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01

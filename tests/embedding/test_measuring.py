"""What the measuring counts: operations of the published models, tokens in a batch, cosines."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from virnucpro_dnabert_s import benchmarking as dnabert_s
from virnucpro_dnabert_s.weights import make_meta_model
from virnucpro_esm2 import benchmarking as esm2
from virnucpro_esm2.model import Esm2

from tools.make_esm2_weights import make_config, write_fair_esm
from virnucpro.embedding.measuring import (
    Ceilings,
    _measure_best,
    count_flop_per_token,
    embed_mixed,
    fill_batch,
    find_min_cosine,
    make_sequences,
)
from virnucpro.embedding.models import Model, open_model
from virnucpro.kernels.float8 import Float8Linear
from virnucpro.kernels.onednn import PackedGated, PackedLinear, can_pack

CPU = torch.device("cpu")


def test_operations_are_those_of_the_published_sizes() -> None:
    esm2_3b = Esm2(esm2.make_config(*esm2.SIZES["3B"]), dtype=torch.float16)
    published = make_meta_model(dnabert_s.make_config(*dnabert_s.SIZES["117M"]))
    # 12 D^2 numbers in each of 36 layers of ESM-2; 4 D^2 and 3 D F in each of 12 of DNABERT-S.
    assert count_flop_per_token(esm2_3b) == 2 * 36 * 12 * 2560**2
    assert count_flop_per_token(published) == 2 * 12 * (4 * 768**2 + 3 * 768 * 3072)


def test_a_ceiling_is_the_best_that_was_measured() -> None:
    # The warm-up, and five calls, of which other programs slow down four.
    seconds = iter([0.0, 0.05, 0.05, 0.001, 0.05, 0.05])
    assert 0.001 <= _measure_best(lambda: time.sleep(next(seconds)), CPU) < 0.05
    assert not list(seconds)
    before, after = (
        Ceilings({"fp32": 1.0, "bf16": 4.0}, 5.0),
        Ceilings({"fp32": 2.0, "bf16": 3.0}, 6.0),
    )
    assert before.raise_to(after) == Ceilings({"fp32": 2.0, "bf16": 4.0}, 6.0)


def test_layers_in_8_bits_count_as_the_others() -> None:
    linear = torch.nn.Linear(32, 48)
    assert count_flop_per_token(Float8Linear(linear)) == count_flop_per_token(linear) == 2 * 32 * 48


@pytest.mark.skipif(not can_pack(torch.float32, CPU), reason="needs oneDNN")
def test_packed_layers_count_as_the_others() -> None:
    weight = torch.randn(48, 32)
    assert count_flop_per_token(PackedLinear(weight, None)) == 2 * 32 * 48
    assert count_flop_per_token(PackedGated(weight)) == 2 * 32 * 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("weights")
    return open_model("esm2", str(esm2.write_random_weights(directory, "35M")))


@pytest.mark.parametrize("batch_tokens", [1, 168, 336, 2048])
def test_a_batch_is_as_full_as_in_a_run(model: Model, batch_tokens: int) -> None:
    sequences = list(itertools.islice(make_sequences("protein", 500), 100))
    assert {len(sequence) for sequence in sequences} <= set(range(158, 167))
    batch = fill_batch(model, sequences, batch_tokens)
    num_taken = len(batch.rows)
    assert num_taken == 1 or batch.max_length * num_taken <= batch_tokens
    with_one_more = max(len(sequence) + 2 for sequence in sequences[: num_taken + 1])
    assert with_one_more * (num_taken + 1) > batch_tokens


def test_mixed_sequences_keep_their_order(tmp_path: Path) -> None:
    path = write_fair_esm(tmp_path / "esm2_tiny.pt", make_config(2, 32, 4))
    model = open_model("esm2", str(path))
    encoder = model.load_encoder(CPU, "fp32", "eager")
    found_BE = embed_mixed(model, encoder, CPU)
    assert len(found_BE) == 32
    shortest = next(make_sequences("protein", 12))
    with torch.inference_mode():
        wanted_E = encoder(model.load_collator()(np.zeros(1, dtype=np.int64), [shortest]))[0]
    assert torch.allclose(found_BE[0], wanted_E, atol=1e-4)


def test_a_vector_of_nan_is_not_close_to_anything() -> None:
    wanted = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert find_min_cosine(2 * wanted, wanted) == pytest.approx(1.0)
    found = wanted.clone()
    found[1] = torch.nan
    assert find_min_cosine(found, wanted) == -1.0


def test_random_weights_share_their_numbers_on_disk_but_differ_by_layer(model: Model) -> None:
    assert model.weights.path.stat().st_size < 8e6  # 33 M numbers of 2 bytes would be 67 MB
    encoder = model.load_encoder(CPU, "fp32", "eager")
    assert isinstance(encoder, Esm2)
    matrices = [layer.fc1.weight.numpy() for layer in encoder.layers]
    for one, other in itertools.combinations(matrices, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01

"""The contract that every backend keeps, as a test class to inherit from.

Shapes: B sequences in a batch, T tokens of all of them together, E the embedding's dimension.
"""

# ruff: noqa: D102  a test's name says what it checks

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader

from virnucpro.backend.interface import (
    ALL_LETTERS,
    INTERFACE_VERSION,
    USUAL_LETTERS,
    Alphabet,
    Attention,
    Backend,
    BackendInfo,
    Collator,
    Encoder,
    Requirement,
    TokenBatch,
    Weights,
)
from virnucpro.backend.testing.steps import (
    collate,
    embed,
    load_encoder,
    load_encoder_or_skip,
    max_difference,
    needs_gpu,
)
from virnucpro.backend.testing.trainable_contract import TrainableContract
from virnucpro.errors import WeightsError

UNKNOWN_LETTER: dict[Alphabet, str] = {"dna": "N", "protein": "X"}


class BackendContract(TrainableContract):
    """Tests that every backend must pass. Inherit, and write `make_backend` and `make_weights`.

    Attributes:
        letters_per_token: The most letters in a token. It decides how long "long" sequences are.
        cost_factor: The factor by which `token_cost` may be too high or too low.
        tolerance: Maximum difference between two float32 results that should be equal, relative to
            the largest number in them.
        half_precision_cosine: Minimum cosine between half-precision and float32 embeddings.
    """

    letters_per_token: int = 1
    cost_factor: float = 1.5
    tolerance: float = 2e-5
    half_precision_cosine: float = 0.99

    def make_backend(self) -> Backend:
        """Return the backend under test."""
        raise NotImplementedError

    def make_weights(self, directory: Path, seed: int) -> str:
        """Write small weights that depend on `seed` into `directory`, and return their location."""
        raise NotImplementedError

    def make_sequences(self) -> list[str]:
        """Return typical sequences of several lengths, not sorted by length."""
        alphabet = self.make_backend().info.alphabet
        source = random.Random(0)
        # Two of one length, some very short, and no order: a backend may rely on nothing here.
        lengths = (60, 7, 150, 1, 33, 166, 2, 100, 60)
        sequences = [
            "".join(source.choices(USUAL_LETTERS[alphabet], k=length)) for length in lengths
        ]
        return [*sequences, sequences[0][:20] + 3 * UNKNOWN_LETTER[alphabet] + sequences[0][20:]]

    @pytest.fixture
    def backend(self) -> Backend:
        """Return the backend under test."""
        return self.make_backend()

    @pytest.fixture
    def weights(self, backend: Backend, tmp_path: Path) -> Weights:
        """Return opened weights of seed 0."""
        return backend.open_weights(self._make_location(tmp_path / "weights", seed=0))

    @pytest.fixture
    def collator(self, backend: Backend, weights: Weights) -> Collator:
        """Return the collator of these weights."""
        return backend.load_collator(weights)

    @pytest.fixture
    def encoder(self, backend: Backend, weights: Weights) -> Encoder:
        """Return the float32 encoder of these weights on the CPU."""
        return load_encoder(backend, weights)

    # What is known without weights

    def test_info_is_sane(self, backend: Backend) -> None:
        info = backend.info
        assert isinstance(info, BackendInfo)
        assert info.interface_version == INTERFACE_VERSION
        assert info.name
        assert info.name == info.name.lower().strip()
        assert info.alphabet in get_args(Alphabet)
        assert info.pooling
        assert info.embedding_dim is None or info.embedding_dim > 0
        assert info.max_tokens is None or info.max_tokens > 0
        # Whoever cuts sequences must say how, so that users can be told.
        assert (info.max_tokens is None) == (info.max_letters is None)
        for need in info.needs:
            assert isinstance(need, Requirement)
            # Without it, the other tests would fail, and say less.
            assert need.is_installed(), need.explain()

    def test_module_is_imported_without_torch(self, backend: Backend) -> None:
        code = (
            f"import sys, {type(backend).__module__}\n"
            "print(*{'torch', 'accelerate', 'transformers'} & set(sys.modules))"
        )
        # In a process of its own, which finds the modules where this one does.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", code]
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert child.returncode == 0, child.stderr
        assert child.stdout.strip() == "", "these packages were imported"

    def test_token_cost_grows_with_length(self, backend: Backend) -> None:
        sequence = max(self.make_sequences(), key=len)
        # Batches are cut by falling cost, so a longer sequence may not cost less.
        costs = [backend.token_cost(sequence[:length]) for length in range(1, len(sequence) + 1)]
        assert costs[0] > 0
        assert costs == sorted(costs)

    def test_token_cost_is_near_the_truth(self, backend: Backend, collator: Collator) -> None:
        sequences = self._make_distinct_sequences()
        true_costs = collate(collator, sequences).lengths_B.tolist()
        for sequence, true_cost in zip(sequences, true_costs, strict=True):
            ratio = backend.token_cost(sequence) / true_cost
            assert 1 / self.cost_factor <= ratio <= self.cost_factor, (
                f"{len(sequence)} letters are {true_cost} tokens"
            )

    # Weights

    def test_weights_state_their_dimension(self, backend: Backend, weights: Weights) -> None:
        assert weights.embedding_dim > 0
        assert backend.info.embedding_dim in (None, weights.embedding_dim)
        assert weights.path.exists()

    def test_identity_belongs_to_the_content(self, backend: Backend, tmp_path: Path) -> None:
        location = Path(self._make_location(tmp_path / "first", seed=0))
        # Weights lie at other paths on other machines, and are the same weights.
        copy = shutil.copytree(tmp_path / "first", tmp_path / "copy")
        other = self._make_location(tmp_path / "other", seed=1)
        identity = backend.open_weights(str(location)).identity
        copied = copy / location.relative_to(tmp_path / "first")
        assert identity
        assert backend.open_weights(str(copied)).identity == identity
        assert backend.open_weights(other).identity != identity

    def test_missing_weights_are_refused(self, backend: Backend, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("missing", "empty"):
            with pytest.raises(WeightsError, match=name):
                backend.open_weights(str(tmp_path / name))

    def test_truncated_weights_are_refused(self, backend: Backend, tmp_path: Path) -> None:
        location = self._make_location(tmp_path / "weights", seed=0)
        files = [path for path in (tmp_path / "weights").rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
        with pytest.raises(WeightsError, match=largest.name):
            load_encoder(backend, backend.open_weights(location))

    # Batches

    def test_batch_keeps_rows_and_order(self, collator: Collator) -> None:
        sequences = self.make_sequences()
        # Not 0, 1, 2, ...: a collator that counts for itself must fail.
        rows = np.arange(len(sequences), dtype=np.int64)[::-1] * 7 + 3
        batch = collator(rows, sequences)
        alone = [collate(collator, [sequence]) for sequence in sequences]
        assert isinstance(batch, TokenBatch)
        assert isinstance(batch.rows, np.ndarray)
        assert batch.rows.dtype == np.int64
        assert batch.rows.tolist() == rows.tolist()
        assert batch.token_ids_T.dtype == batch.lengths_B.dtype == torch.int64
        assert batch.lengths_B.tolist() == [one.lengths_B.item() for one in alone]
        assert batch.token_ids_T.tolist() == torch.cat([b.token_ids_T for b in alone]).tolist()
        assert batch.max_length == batch.lengths_B.max()
        assert type(batch.max_length) is int

    def test_collator_works_in_a_spawned_worker(self, collator: Collator) -> None:
        sequences = self.make_sequences()
        # `collate_fn` replaces the loader's own conversion, which would make a tensor of `rows`.
        loader: DataLoader[TokenBatch] = DataLoader(
            [sequences],  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=functools.partial(collate, collator),
            num_workers=1,
            multiprocessing_context="spawn",
        )
        (batch,) = loader
        expected = collate(collator, sequences)
        assert torch.equal(batch.token_ids_T, expected.token_ids_T)
        assert torch.equal(batch.lengths_B, expected.lengths_B)
        assert batch.max_length == expected.max_length
        assert batch.rows.tolist() == expected.rows.tolist()

    def test_accelerate_moves_the_tensors_alone(self, collator: Collator) -> None:
        # The meta device shows on any machine what was moved.
        batch = send_to_device(collate(collator, self.make_sequences()), torch.device("meta"))
        assert isinstance(batch, TokenBatch)
        assert batch.token_ids_T.is_meta
        assert batch.lengths_B.is_meta
        assert isinstance(batch.rows, np.ndarray)
        assert type(batch.max_length) is int

    # Embeddings

    def test_embeddings_have_the_promised_form(
        self, weights: Weights, collator: Collator, encoder: Encoder
    ) -> None:
        sequences = self.make_sequences()
        embedding_BE = embed(encoder, collate(collator, sequences))
        assert embedding_BE.shape == (len(sequences), weights.embedding_dim)
        assert embedding_BE.dtype == torch.float32
        assert torch.isfinite(embedding_BE).all()

    def test_encoder_is_a_module_in_eval_mode(self, encoder: Encoder) -> None:
        assert isinstance(encoder, torch.nn.Module)
        assert not any(module.training for module in encoder.modules())

    def test_embeddings_do_not_depend_on_neighbours(
        self, collator: Collator, encoder: Encoder
    ) -> None:
        sequences = self.make_sequences()
        together_BE = embed(encoder, collate(collator, sequences))
        # In reverse, each sequence has another place and other neighbours before it.
        reversed_BE = embed(encoder, collate(collator, sequences[::-1])).flip(0)
        alone_BE = torch.cat([embed(encoder, collate(collator, [s])) for s in sequences])
        for row, sequence in enumerate(sequences):
            name = f"sequence {row}, {len(sequence)} letters"
            assert max_difference(together_BE[row], alone_BE[row]) < self.tolerance, name
            assert max_difference(reversed_BE[row], alone_BE[row]) < self.tolerance, name

    def test_embeddings_tell_sequences_apart(self, collator: Collator, encoder: Encoder) -> None:
        embedding_BE = embed(encoder, collate(collator, self._make_distinct_sequences()))
        for one, other in itertools.combinations(range(len(embedding_BE)), 2):
            difference = max_difference(embedding_BE[one], embedding_BE[other])
            assert difference > self.tolerance, f"sequences {one} and {other}"

    def test_embeddings_are_deterministic(self, collator: Collator, encoder: Encoder) -> None:
        batch = collate(collator, self.make_sequences())
        assert torch.equal(embed(encoder, batch), embed(encoder, batch))

    def test_weights_decide_the_embeddings(
        self, backend: Backend, collator: Collator, encoder: Encoder, tmp_path: Path
    ) -> None:
        batch = collate(collator, self.make_sequences())
        other = backend.open_weights(self._make_location(tmp_path / "other", seed=1))
        other_BE = embed(load_encoder(backend, other), batch)
        assert max_difference(embed(encoder, batch), other_BE) > self.tolerance

    def test_single_letters_are_embedded(
        self, backend: Backend, collator: Collator, encoder: Encoder
    ) -> None:
        alphabet = backend.info.alphabet
        # The shortest frame has one codon, and so one letter.
        letters = list(USUAL_LETTERS[alphabet] + UNKNOWN_LETTER[alphabet])
        assert torch.isfinite(embed(encoder, collate(collator, letters))).all()

    def test_every_letter_of_a_file_is_embedded(
        self, backend: Backend, collator: Collator, encoder: Encoder
    ) -> None:
        alphabet = backend.info.alphabet
        sequences = [f"{USUAL_LETTERS[alphabet]}{letter}" for letter in ALL_LETTERS[alphabet]]
        assert torch.isfinite(embed(encoder, collate(collator, sequences))).all()

    def test_long_sequences_are_cut_or_embedded_whole(
        self, backend: Backend, collator: Collator, encoder: Encoder
    ) -> None:
        max_tokens = backend.info.max_tokens
        num_letters = ((max_tokens or 1500) + 10) * self.letters_per_token
        long = "".join(
            random.Random(1).choices(USUAL_LETTERS[backend.info.alphabet], k=num_letters)
        )
        batch = collate(collator, [long, long + long, long[:5]])
        length, double_length, _ = batch.lengths_B.tolist()
        # A backend that states no limit must not cut in silence.
        assert double_length == length if max_tokens else double_length > length
        if max_letters := backend.info.max_letters:
            beginnings = [long[:max_letters], long[: max_letters - 1]]
            cut_BE = embed(encoder, collate(collator, [long, *beginnings]))
            assert max_difference(cut_BE[:1], cut_BE[1:2]) < self.tolerance
            assert collate(collator, beginnings[1:]).max_length < length
        assert torch.isfinite(embed(encoder, batch)).all()
        assert backend.token_cost(long) <= self.cost_factor * length

    # Precision and attention

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_attentions_agree(
        self,
        backend: Backend,
        weights: Weights,
        collator: Collator,
        encoder: Encoder,
        attention: Attention,
    ) -> None:
        batch = collate(collator, self.make_sequences())
        other = load_encoder_or_skip(backend, weights, attention=attention)
        assert max_difference(embed(other, batch), embed(encoder, batch)) < self.tolerance

    def test_bfloat16_is_near_float32(
        self, backend: Backend, weights: Weights, collator: Collator, encoder: Encoder
    ) -> None:
        batch = collate(collator, self.make_sequences())
        half_BE = embed(load_encoder(backend, weights, dtype=torch.bfloat16), batch)
        assert half_BE.dtype == torch.float32
        cosine_B = cosine_similarity(half_BE, embed(encoder, batch))
        assert cosine_B.min() > self.half_precision_cosine

    @needs_gpu
    @pytest.mark.parametrize("attention", ["auto", "eager", "sdpa", "flash"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_gpu_is_near_float32_on_the_cpu(
        self,
        backend: Backend,
        weights: Weights,
        collator: Collator,
        encoder: Encoder,
        attention: Attention,
        dtype: torch.dtype,
    ) -> None:
        batch = collate(collator, self.make_sequences())
        cuda = torch.device("cuda")
        on_gpu = load_encoder_or_skip(
            backend, weights, dtype=dtype, device=cuda, attention=attention
        )
        gpu_BE = embed(on_gpu, send_to_device(batch, cuda))
        assert gpu_BE.dtype == torch.float32
        assert gpu_BE.is_cuda
        cosine_B = cosine_similarity(gpu_BE.cpu(), embed(encoder, batch))
        assert cosine_B.min() > self.half_precision_cosine

    def _make_location(self, directory: Path, seed: int) -> str:
        directory.mkdir()
        location = self.make_weights(directory, seed)
        assert any(path.is_file() for path in directory.rglob("*")), (
            "make_weights wrote no file into the directory; if the model has no weights, let a "
            "file of settings decide its vectors (docs/backends.md)"
        )
        return location

    def _make_distinct_sequences(self) -> list[str]:
        """Return the sequences that are too long to be equal, or of one token, by chance."""
        return [sequence for sequence in self.make_sequences() if len(sequence) >= 30]

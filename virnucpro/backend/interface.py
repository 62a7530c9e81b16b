"""What a backend is: the few types that a backend implements or returns.

A backend turns sequences of one alphabet into vectors. It is a package with one object registered
under the entry-point group `virnucpro.backends`; docs/backends.md shows a complete one. A backend
may import `virnucpro.backend`, `virnucpro.kernels` and `virnucpro.errors`, and nothing else of
virnucpro.

Shapes: B sequences in a batch, T tokens of all of them together, E the embedding's dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch

INTERFACE_VERSION = 1
"""Raised when a change here breaks existing backends; the registry refuses other versions."""

Alphabet = Literal["dna", "protein"]
ALPHABETS: tuple[Alphabet, Alphabet] = ("dna", "protein")
Attention = Literal["auto", "eager", "sdpa", "flash"]


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known of a backend without its weights.

    Attributes:
        name: What users type, for example `dnabert-s`; equal to the entry point's name.
        alphabet: What it reads: `dna` or `protein`.
        embedding_dim: Numbers in an embedding; None when the weights decide.
        max_tokens: Longer inputs are cut to this many tokens; None when nothing is cut.
        pooling: How token vectors become one vector, in words; part of a checkpoint's identity.
        interface_version: The `INTERFACE_VERSION` that the backend was written for.
        supports_fp8: Whether `load_encoder` takes `torch.float8_e4m3fn`. A backend that does not
            is asked for bfloat16 in a run with `--precision fp8`.
    """

    name: str
    alphabet: Alphabet
    embedding_dim: int | None
    max_tokens: int | None
    pooling: str
    interface_version: int = INTERFACE_VERSION
    supports_fp8: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that were found on disk and looked into, but not loaded.

    Attributes:
        location: As the user gave it: a file, a directory or a hub id.
        path: Where the files are on this machine.
        identity: A digest of everything that decides the embeddings (`virnucpro.backend.weights`).
        embedding_dim: Numbers in an embedding made with these weights.
    """

    location: str
    path: Path
    identity: str
    embedding_dim: int


class TokenBatch(NamedTuple):
    """Tokenized sequences, packed end to end without padding.

    A NamedTuple because Accelerate moves those to the device; `rows` is a NumPy array and
    `max_length` an int because those stay on the host, where they are needed.

    Attributes:
        token_ids_T: int64 (T,), the sequences one after the other.
        lengths_B: int64 (B,), tokens of each sequence, special tokens included; sums to T.
        max_length: The largest of `lengths_B`.
        rows: int64 (B,), which row of the frame store each sequence is.
    """

    token_ids_T: torch.Tensor
    lengths_B: torch.Tensor
    max_length: int
    rows: np.ndarray[Any, np.dtype[np.int64]]

    def halve(self) -> tuple[TokenBatch, TokenBatch]:
        """Return the first and the second half of a batch of several sequences."""
        half = len(self.rows) // 2
        num_tokens = int(self.lengths_B[:half].sum())
        first, second = (
            self._replace(
                token_ids_T=self.token_ids_T[tokens],
                lengths_B=self.lengths_B[sequences],
                max_length=int(self.lengths_B[sequences].max()),
                rows=self.rows[sequences],
            )
            for sequences, tokens in (
                (slice(half), slice(num_tokens)),
                (slice(half, None), slice(num_tokens, None)),
            )
        )
        return first, second


class Collator(Protocol):
    """Tokenizes; is pickled into the loader's worker processes, and never touches CUDA."""

    def __call__(
        self, rows: np.ndarray[Any, np.dtype[np.int64]], sequences: Sequence[str]
    ) -> TokenBatch:
        """Return the batch of `sequences`, which are upper-case and stand for `rows`."""
        ...


class Encoder(Protocol):
    """A `torch.nn.Module` in eval mode. Called under `torch.inference_mode()`.

    torch.compile may compile its layers (`--compile`), which are the entries of its
    `nn.ModuleList`s, unless it has an attribute `has_own_kernels` that is true.
    """

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return float32 (B, E): one pooled vector for each sequence, in the batch's order.

        A sequence's vector must not depend on its neighbours in the batch.
        """
        ...


class Backend(Protocol):
    """One way to embed sequences. The object must be cheap to import: no torch at import time."""

    info: BackendInfo

    def token_cost(self, sequence: str) -> int:
        """Return about how many tokens `sequence` becomes; called for every row, so be quick.

        Batches are sorted by it and cut so that their cost stays under the token budget.
        """
        ...

    def open_weights(self, location: str) -> Weights:
        """Find, download if need be, and check the weights at `location` without loading them.

        Raises:
            WeightsError: Nothing there, unreadable, unsafe, or of another architecture.
        """
        ...

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator that goes with `weights`."""
        ...

    def load_encoder(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: Attention,
    ) -> Encoder:
        """Load the model onto `device` for computing in `dtype`.

        `torch.float8_e4m3fn` means matrix products in 8 bits and the rest in bfloat16.

        Raises:
            WeightsError: The file does not hold what the model needs.
            UsageError: `attention` or `dtype` is not to be had here; the message says why.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """Another way to compute a backend's embeddings, which `virnucpro benchmark` measures beside.

    Attributes:
        name: For people, for example `fair-esm`.
        precision: What it computes in: `fp32`, `bf16` or `fp16`.
        batch_tokens: Tokens in a batch, as it is used; None for as many as the backend's own.
        load: Returns it as an encoder on a device; raises UsageError where what it needs is not
            installed.
    """

    name: str
    precision: str
    batch_tokens: int | None
    load: Callable[[torch.device], Encoder]


@runtime_checkable
class MeasurableBackend(Backend, Protocol):
    """A backend with what `virnucpro benchmark` needs to measure it where no weights are given.

    These methods are optional: a backend without them is measured on the user's weights.
    """

    def benchmark_sizes(self, *, on_gpu: bool) -> Sequence[str]:
        """Return the sizes of the model that tell something on a GPU, or on a CPU in a minute."""
        ...

    def write_random_weights(self, directory: Path, size: str) -> Path:
        """Write weights of one size to an empty directory, and return their location.

        Speed does not depend on the numbers, so they are random.
        """
        ...

    def list_references(self, weights: Weights, *, on_gpu: bool) -> Sequence[Reference]:
        """Return what to compare `weights` with, computed otherwise."""
        ...

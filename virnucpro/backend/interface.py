"""What a backend is: the few types that a backend implements or returns.

A backend turns sequences of one alphabet into vectors. It is a package that registers one object
under the entry-point group `virnucpro.backends`; docs/backends.md shows a complete one. A backend
imports only `virnucpro.backend`, `virnucpro.kernels` and `virnucpro.errors` from virnucpro.

Shapes: B sequences in a batch, T tokens of all of them together, E the embedding's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NotRequired, Protocol, TypedDict

from virnucpro.errors import first_line

# Listing the backends must import neither NumPy nor torch.
if TYPE_CHECKING:
    import torch

    from virnucpro.backend.arrays import Int64Array
    from virnucpro.backend.changes import Changes

INTERFACE_VERSION = 1
"""Raised when a change here breaks existing backends; the registry refuses other versions."""

Alphabet = Literal["dna", "protein"]
ALPHABETS: tuple[Alphabet, Alphabet] = ("dna", "protein")
Attention = Literal["auto", "eager", "sdpa", "flash"]

USUAL_LETTERS: Mapping[Alphabet, str] = {"dna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}
"""The letters that nearly all sequences consist of."""

# IUPAC-IUB codes (Cornish-Bowden 1985) and gaps. DNA does not have `*`, the end of a protein.
ALL_LETTERS: Mapping[Alphabet, str] = {
    "dna": "ACGTRYSWKMBDHVNX-.",
    "protein": "ABCDEFGHIJKLMNOPQRSTUVWXYZ*-.",
}
"""The letters that a backend may be given."""


class Requirement(NamedTuple):
    """A package that is needed, but is not always installed.

    Attributes:
        package: Its name, as pip lists it; for example `fair-esm`, not the module `esm`.
        install: What pip must install to add it, for example `virnucpro[reference]`.
    """

    package: str
    install: str

    def is_installed(self) -> bool:
        """Tell whether the package is installed, without importing it."""
        try:
            metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return False
        return True

    def explain(self, error: ImportError | None = None) -> str:
        """Return what is needed, why it is not there, and what to do: the end of a sentence.

        Args:
            error: What the import of the package raised, if it was tried.
        """
        why = "is not installed"
        if error is not None and self.is_installed():
            why = f"cannot be imported ({first_line(error)})"
        return f"needs the package {self.package}, which {why}: `pip install '{self.install}'`"


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known about a backend without its weights.

    Attributes:
        name: What users type, for example `dnabert-s`; equal to the entry point's name.
        alphabet: What it reads: `dna` or `protein`.
        embedding_dim: Numbers in an embedding; None when the weights decide.
        max_tokens: Longer inputs are cut to this many tokens; None when nothing is cut.
        max_letters: How many letters of a longer sequence are embedded, from its beginning; None
            when nothing is cut. Users are told when sequences are cut.
        pooling: How token vectors become one vector, in words; part of a checkpoint's identity.
        interface_version: The `INTERFACE_VERSION` that the backend was written for.
        supports_fp8: Whether `load_encoder` accepts `torch.float8_e4m3fn`. With `--precision fp8`,
            any other backend gets bfloat16.
        min_fp8_tokens: In a run with fp8, sequences with a lower `token_cost` get batches of their
            own, so that the encoder can compute these in bfloat16.
        linear_layers: The kinds of linear layers that adapters can go to: the last part of the
            module's name, for example `fc1`. A backend that states such kinds can be fine-tuned,
            and is a `TrainableBackend`.
        needs: The packages that are not always installed together with the backend, such as those
            of an extra. The list of backends names those that are missing.
    """

    name: str
    alphabet: Alphabet
    embedding_dim: int | None
    max_tokens: int | None
    pooling: str
    # For backends that come with this version. Others state the number (docs/backends.md).
    interface_version: int = INTERFACE_VERSION
    supports_fp8: bool = False
    # Last, and with a default: backends from before this field existed do not state it.
    max_letters: int | None = None
    min_fp8_tokens: int = 0
    linear_layers: tuple[str, ...] = ()
    needs: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that were found and checked, but not loaded.

    Attributes:
        location: What the user gave: a file, a directory or a hub id.
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

    It is a NamedTuple because Accelerate moves the tensors of a NamedTuple to the device, but
    silently leaves tensors of a dataclass on the CPU. `rows` is a NumPy array and `max_length` an
    int, so both stay on the host, where they are needed.

    Attributes:
        token_ids_T: int64 (T,), the sequences one after the other.
        lengths_B: int64 (B,), tokens of each sequence, special tokens included; they sum to T.
        max_length: The largest of `lengths_B`.
        rows: int64 (B,), the row of each sequence in the frame store.
    """

    token_ids_T: torch.Tensor
    lengths_B: torch.Tensor
    max_length: int
    rows: Int64Array

    def halve(self) -> tuple[TokenBatch, TokenBatch]:
        """Return the first and the second half of a batch of several sequences."""
        # By sequences and not by tokens: the sequences of a batch have similar lengths anyway.
        half = len(self.rows) // 2
        return self.take(slice(half)), self.take(slice(half, None))

    def take(self, sequences: slice) -> TokenBatch:
        """Return the batch of some neighbouring sequences, at least one."""
        before = int(self.lengths_B[: sequences.start or 0].sum())
        lengths_B = self.lengths_B[sequences]
        tokens = slice(before, before + int(lengths_B.sum()))
        # Their own longest: kernels start for it, and padding follows it.
        max_length = int(lengths_B.max())
        return TokenBatch(self.token_ids_T[tokens], lengths_B, max_length, self.rows[sequences])


class Collator(Protocol):
    """Tokenizes sequences. It is pickled into the loader's workers, and never touches CUDA."""

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`, which are upper-case and belong to `rows`."""
        ...


class Encoder(Protocol):
    """A `torch.nn.Module` in eval mode, called under `torch.inference_mode()`.

    With `--compile`, torch.compile compiles its layers: the entries of its `nn.ModuleList`s. An
    encoder with kernels of its own sets an attribute `has_own_kernels` to True and is not compiled.
    """

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """Return float32 (B, E): one pooled vector for each sequence, in the batch's order.

        The vector of a sequence must not depend on the other sequences of the batch.
        """
        ...


class Backend(Protocol):
    """One way to embed sequences. Importing the object must not import torch, which takes long."""

    info: BackendInfo

    def token_cost(self, sequence: str) -> int:
        """Return about how many tokens `sequence` has; called for every row, so it must be quick.

        Batches are sorted by this cost, and cut so that their cost stays within the token budget.
        """
        ...

    def open_weights(self, location: str) -> Weights:
        """Find (or download) and check the weights at `location`, without loading them.

        Raises:
            WeightsError: Nothing is there, or it is unreadable, unsafe, or of another architecture.
            UsageError: A package of `info.needs` is not installed.
        """
        ...

    def load_collator(self, weights: Weights) -> Collator:
        """Return the collator that belongs to `weights`."""
        ...

    def load_encoder(
        self, weights: Weights, *, dtype: torch.dtype, device: torch.device, attention: Attention
    ) -> Encoder:
        """Load the model onto `device`, to compute in `dtype`.

        `torch.float8_e4m3fn` means matrix products in 8 bits and everything else in bfloat16.

        Raises:
            WeightsError: The file does not hold what the model needs.
            UsageError: `attention` or `dtype` does not work here; the message says why.
        """
        ...


class EncoderSettings(TypedDict):
    """What `load_encoder` is told, for backends that pass it on."""

    dtype: torch.dtype
    device: torch.device
    attention: Attention
    changes: NotRequired[Changes | None]


class TrainingSettings(TypedDict):
    """What `load_trainable` is told, for backends that pass it on."""

    dtype: torch.dtype
    device: torch.device
    gradient_checkpointing: NotRequired[bool]


class TrainableBackend(Backend, Protocol):
    """A backend whose encoders can be fine-tuned; `info.linear_layers` says so."""

    def load_encoder(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: Attention,
        changes: Changes | None = None,
    ) -> Encoder:
        """Load the model with `changes` in its weights; `changes` is given only if there are any.

        Changes are merged in float32, before anything is rounded, quantized or packed.

        Raises:
            WeightsError: The file does not hold what the model needs, or the model does not have
                what `changes` change.
            UsageError: `attention` or `dtype` does not work here; the message says why.
        """
        ...

    def load_trainable(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        gradient_checkpointing: bool = False,
    ) -> torch.nn.Module:
        """Load the model onto `device` to train it.

        The module is called as an encoder is. Its parameters have the names of the encoder's
        parameters, are in `dtype`, and need no gradients yet: the caller switches on gradients
        where it trains. Gradients must reach every parameter, also under `torch.autocast`. Linear
        layers are called as modules, because the caller puts adapters in their places. There is no
        dropout.

        Args:
            weights: What `open_weights` returned.
            dtype: Of the parameters.
            device: Where the model is to be.
            gradient_checkpointing: Whether the states inside a layer are computed again for the
                gradients, and not kept. This takes more time and much less memory.

        Raises:
            WeightsError: The file does not hold what the model needs.
        """
        ...

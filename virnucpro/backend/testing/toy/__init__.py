"""A complete backend in two small files: the average of learned vectors, one for each letter pair.

This file is imported whenever the installed backends are listed, so it does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virnucpro.backend.interface import Attention, BackendInfo, Weights
from virnucpro.backend.weights import digest_files, locate_weights, read_tensors
from virnucpro.errors import UsageError, WeightsError

if TYPE_CHECKING:
    import torch

    from virnucpro.backend.changes import Changes

    from .model import ToyCollator, ToyEncoder

FILE_NAME = "toy.safetensors"
MAX_TOKENS = 1000


class ToyBackend:
    """Embeds DNA for tests and as an example; its vectors mean nothing."""

    info = BackendInfo(
        name="toy",
        alphabet="dna",
        embedding_dim=None,  # the weights decide
        max_tokens=MAX_TOKENS,
        pooling="mean over all tokens",
        interface_version=1,
        max_letters=MAX_TOKENS,  # each letter is a token
        linear_layers=("mix",),  # adapters can go there
    )

    def token_cost(self, sequence: str) -> int:
        """Return the number of tokens, one for each letter."""
        return min(len(sequence), MAX_TOKENS)

    def open_weights(self, location: str) -> Weights:
        """Find the file at `location`, which is the file, its directory or a hub id."""
        path = locate_weights(location, [FILE_NAME])
        file_path = path / FILE_NAME if path.is_dir() else path
        shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(file_path).items()}
        embedding_dim = shapes.get("mix.bias", (0,))[0]
        if shapes != {
            "pairs.weight": (27 * 27, embedding_dim),
            "mix.weight": (embedding_dim, embedding_dim),
            "mix.bias": (embedding_dim,),
        }:
            raise WeightsError(f"{file_path}: not the weights of a toy model; it holds {shapes}")
        return Weights(location, file_path, digest_files([file_path]), embedding_dim)

    def load_collator(self, weights: Weights) -> ToyCollator:
        """Return the tokenizer, which is the same for all weights."""
        from .model import ToyCollator

        return ToyCollator(MAX_TOKENS)

    def load_encoder(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        attention: Attention,
        changes: Changes | None = None,
    ) -> ToyEncoder:
        """Load the model; it has no attention, so all settings but `flash` mean the same."""
        from .model import load_toy

        if attention == "flash":
            raise UsageError("The toy backend has no attention; leave --attention at auto")
        return load_toy(read_tensors(weights.path), changes).to(device, dtype).eval()

    def load_trainable(
        self,
        weights: Weights,
        *,
        dtype: torch.dtype,
        device: torch.device,
        gradient_checkpointing: bool = False,
    ) -> ToyEncoder:
        """Load the model to train it; it is too small for checkpointing to save anything."""
        from .model import load_toy

        return load_toy(read_tensors(weights.path)).to(device, dtype).requires_grad_(False)


backend = ToyBackend()

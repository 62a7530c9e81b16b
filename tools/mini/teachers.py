"""Trained runs that are read back: as teachers, to be measured, and weights to begin with.

Shapes: C chunks, F stretches of all chunks, D numbers of a protein embedding.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from virnucpro_dnabert_s import backend as dna_backend
from virnucpro_esm2 import NUM_SPECIAL_TOKENS
from virnucpro_esm2 import backend as protein_backend
from virnucpro_esm2.weights import HUB_FILES, read_checkpoint

from tools.mini.model import MiniModel, Sizes, judge
from tools.mini.stretches import ChunkTokens, Proteins
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.weights import locate_weights
from virnucpro.config import FrameRule

SETTINGS_NAME = "settings.json"
WEIGHTS_NAME = "weights.safetensors"
MODEL_NAME = "model"


def read_run(run: Path) -> tuple[MiniModel, FrameRule]:
    """Return the best model of a run of `tools.mini.train`, and the rule that it learned with."""
    settings = json.loads((run / SETTINGS_NAME).read_text())
    sizes = Sizes(**{field.name: settings[field.name] for field in fields(Sizes)})
    model = MiniModel(sizes).eval().requires_grad_(False)
    state = load_file(run / WEIGHTS_NAME)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("teacher_maps.")})
    return model, FrameRule("stretches", settings["num_stretches"], settings["min_codons"])


class Teacher:
    """The best model of a run as `predict` computes it: fast, and without gradients.

    Attributes:
        protein_width: Numbers of its protein embeddings.
    """

    def __init__(self, run: Path, word_bp: int, dtype: torch.dtype, device: torch.device) -> None:
        """Load the files that the run has exported.

        Raises:
            ValueError: Its DNA is cut into other words than those of `word_bp` bases.
        """
        model, _ = read_run(run)
        if model.sizes.word_bp != word_bp:
            raise ValueError(
                f"{run}: learned words of {model.sizes.word_bp} bases, wanted a teacher that knows "
                f"those of {word_bp}; give the same --word-bp"
            )
        self.protein_width = model.sizes.protein_width
        self._head = model.head.to(device)
        self._encoders = [
            backend.load_encoder(
                backend.open_weights(str(run / MODEL_NAME / name)),
                dtype=dtype,
                device=device,
                attention="auto",
            )
            for name, backend in (("dnabert_s", dna_backend), ("esm2", protein_backend))
        ]

    @torch.no_grad()
    def score(self, chunks: list[ChunkTokens], proteins: Proteins) -> tuple[Tensor, Tensor]:
        """Return the chunks' logits (C,) and the protein embeddings (F, D)."""
        encode_dna, encode_proteins = self._encoders
        lengths_F, longest = proteins.packing.lengths_B, proteins.packing.max_length
        batch = TokenBatch(proteins.token_ids_T, lengths_F, longest, np.arange(len(lengths_F)))
        # Without a residue, the mean over residues is no number.
        is_empty_F1 = (lengths_F == NUM_SPECIAL_TOKENS)[:, None]
        protein_FD = proteins.sort_back(encode_proteins(batch).masked_fill(is_empty_F1, 0.0))
        embeddings = []
        for one in chunks:
            num_chunks, num_tokens = one.dna_CT.shape
            lengths_C = torch.full((num_chunks,), num_tokens, device=one.dna_CT.device)
            batch = TokenBatch(one.dna_CT.flatten(), lengths_C, num_tokens, np.arange(num_chunks))
            embeddings.append(encode_dna(batch))
        return judge(self._head, embeddings, protein_FD, chunks), protein_FD


def read_protein_sizes(location: str) -> dict[str, int | float | bool]:
    """Return the sizes of published ESM-2 weights under their names in `Sizes`."""
    config = read_checkpoint(locate_weights(location, HUB_FILES)).config
    return {
        "protein_layers": config.num_layers,
        "protein_width": config.embed_dim,
        "protein_heads": config.num_heads,
        "protein_inner": config.ffn_dim,
        "protein_eps": config.layer_norm_eps,
        "protein_token_dropout": config.token_dropout,
    }


@torch.no_grad()
def load_protein(model: MiniModel, location: str) -> None:
    """Copy published ESM-2 weights into the model's protein encoder."""
    checkpoint = read_checkpoint(locate_weights(location, HUB_FILES))
    for name, parameter in model.protein.named_parameters():
        sources = checkpoint.sources[name]
        for part, source in zip(parameter.chunk(len(sources)), sources, strict=True):
            part.copy_(source)
    if checkpoint.frequencies_R is not None:
        model.protein.set_rotary(checkpoint.frequencies_R)


def ask_teachers(
    teachers: list[Teacher], chunks: list[ChunkTokens], proteins: Proteins
) -> tuple[Tensor, list[Tensor]]:
    """Return the mean of the teachers' logits (C,), and the protein embeddings (F, D) of each."""
    answers = [teacher.score(chunks, proteins) for teacher in teachers]
    logits_C = torch.stack([logits for logits, _ in answers]).mean(0)
    return logits_C, [protein_FD for _, protein_FD in answers]


def embedding_loss(mapped_FD: Tensor, taught_FD: Tensor, is_stretch_F: Tensor) -> Tensor:
    """Return how far mapped embeddings are from the teacher's, each number of these standardized.

    Most of an embedding is the same for all proteins. The standardizing leaves what tells them
    apart.
    """
    weight_F1 = is_stretch_F[:, None].float()
    num = weight_F1.sum().clamp(min=2)
    mean_D = (taught_FD * weight_F1).sum(0) / num
    std_D = ((taught_FD - mean_D).square() * weight_F1).sum(0).div(num).sqrt()
    wanted_FD = (taught_FD - mean_D) / (std_D + 1e-6)
    loss_FD = functional.smooth_l1_loss(mapped_FD.float(), wanted_FD, reduction="none")
    return (loss_FD * weight_F1).sum() / (num * loss_FD.shape[1])

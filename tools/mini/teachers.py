"""Trained models that are read back: as teachers, to be measured, and weights to begin with.

Shapes: C chunks, F stretches of all chunks, D numbers of a protein embedding.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from virnucpro_dnabert_s import backend as dna_backend
from virnucpro_dnabert_s.weights import find_files, read_config, read_state_dict
from virnucpro_esm2 import NUM_SPECIAL_TOKENS
from virnucpro_esm2 import backend as protein_backend
from virnucpro_esm2.weights import HUB_FILES, read_checkpoint

from tools.mini.model import MiniModel, Sizes, judge
from tools.mini.stretches import ChunkTokens, Proteins, first_word_id
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.weights import locate_weights
from virnucpro.config import MINI_LENGTHS_BP, FrameRule
from virnucpro.scoring.classifier_files import read_classifier


def read_model(directory: Path) -> tuple[MiniModel, FrameRule]:
    """Return a small model from the files that `predict` reads, and its frame rule.

    These files do not hold what guesses masked tokens: here it is random.

    Args:
        directory: The model that ships, or `model` in the output of `tools.mini.train`.
    """
    # The classifiers for both chunk lengths hold the same head.
    path = directory / f"{MINI_LENGTHS_BP[0]}_model.safetensors"
    head, metadata, _ = read_classifier(path)
    if metadata is None or metadata.chunk_head is None:
        raise ValueError(f"{path}: wanted a classifier over chunks, as tools.mini.train writes it")
    files = find_files(directory / "dnabert_s")
    config = read_config(files.config)
    protein = str(directory / "esm2")
    sizes = Sizes(
        word_bp=next(bp for bp in itertools.count() if first_word_id(bp + 1) >= config.vocab_size),
        dna_layers=config.num_hidden_layers,
        dna_width=config.hidden_size,
        dna_heads=config.num_attention_heads,
        dna_inner=config.intermediate_size,
        head_width=metadata.chunk_head.width,
        hidden=metadata.chunk_head.hidden,
        **read_protein_sizes(protein),
    )
    model = MiniModel(sizes)
    model.dna.load_state_dict(read_state_dict(files, config))
    load_protein(model, protein)
    model.head.load_state_dict(head)
    return model.eval().requires_grad_(False), FrameRule.parse(metadata.frame_rule)


class Teacher:
    """A trained model as `predict` computes it: fast, and without gradients.

    Attributes:
        protein_width: Numbers of its protein embeddings.
    """

    def __init__(
        self, directory: Path, word_bp: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Load a model from the files that `predict` reads.

        Raises:
            ValueError: Its DNA is cut into other words than those of `word_bp` bases.
        """
        model, _ = read_model(directory)
        if model.sizes.word_bp != word_bp:
            raise ValueError(
                f"{directory}: learned words of {model.sizes.word_bp} bases, wanted a teacher that "
                f"knows those of {word_bp}; give the same --word-bp"
            )
        self.protein_width = model.sizes.protein_width
        self._head = model.head.to(device)
        self._encoders = [
            backend.load_encoder(
                backend.open_weights(str(directory / name)),
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


def read_protein_sizes(location: str) -> dict[str, Any]:
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


def resize_protein(model: MiniModel, num_layers: int) -> None:
    """Give the protein encoder another number of layers.

    Fewer are chosen at equal distances. Of more, the new ones repeat the others, but add nothing at
    first, so the model still computes the same.
    """
    layers = list(model.protein.layers)
    resized: list[nn.Module] = []
    last = -1
    for number in range(num_layers):
        source = number * len(layers) // num_layers
        resized.append(copy.deepcopy(layers[source]))
        if source == last:
            for name in ("out", "fc2"):
                for parameter in getattr(resized[-1], name).parameters():
                    nn.init.zeros_(parameter)
        last = source
    model.protein.layers = nn.ModuleList(resized)


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

"""The classifier over a chunk: its stretches' proteins and its DNA give one logit.

A stretch is a run of codons without a stop, in one of the chunk's six frames.

Shapes: C chunks, N stretches of a chunk (padded), P numbers of a protein embedding, Q numbers of a
DNA embedding, W the head's width, K features of a stretch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_FEATURES = 4


@dataclass(frozen=True)
class ChunkHeadSizes:
    """The sizes of a `ChunkHead`, as its file keeps them.

    Attributes:
        dna_dim: Numbers of a DNA embedding.
        protein_dim: Numbers of a protein embedding.
        width: Numbers that the head keeps of each stretch.
        hidden: Units of the last hidden layer.
    """

    dna_dim: int
    protein_dim: int
    width: int = 192
    hidden: int = 128

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the head, without building it."""
        # The numbers are those of `nn.Sequential` below, which also counts layers without tensors.
        layers = {
            "protein.1": (self.width, self.protein_dim),
            "features": (self.width, NUM_FEATURES),
            "gate": (1, self.width),
            "dna.1": (self.width, self.dna_dim),
            "dna.4": (self.width, self.width),
            "output.0": (self.hidden, self.width),
            "output.3": (1, self.hidden),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, dim in (("protein.0", self.protein_dim), ("dna.0", self.dna_dim)):
            shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
        for name, shape in layers.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return shapes


class ChunkHead(nn.Module):
    """Gives the logit of "viral" for each chunk.

    Each stretch gets a vector from its protein embedding and its features. A gate of its own
    weighs each vector in the mean over the chunk's stretches. The DNA's vector is added to the
    mean, and two layers make a logit of the sum. A chunk's logit depends on nothing but the chunk.

    Attributes:
        sizes: The sizes of the head.
    """

    def __init__(self, sizes: ChunkHeadSizes, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        # These names are the names of the tensors in a file, so they must stay.
        self.protein = nn.Sequential(
            nn.LayerNorm(sizes.protein_dim),
            nn.Linear(sizes.protein_dim, width),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.features = nn.Linear(NUM_FEATURES, width)
        self.gate = nn.Linear(width, 1)
        self.dna = nn.Sequential(
            nn.LayerNorm(sizes.dna_dim),
            nn.Linear(sizes.dna_dim, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )
        self.output = nn.Sequential(
            nn.Linear(width, sizes.hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(sizes.hidden, 1),
        )

    def forward(
        self, dna_CQ: Tensor, protein_CNP: Tensor, features_CNK: Tensor, is_stretch_CN: Tensor
    ) -> Tensor:
        """Return the logits (C,).

        Args:
            dna_CQ: The embedding of each chunk's whole DNA.
            protein_CNP: The embeddings of its stretches; any finite numbers where there is none.
            features_CNK: What `stretch_features` returns of them.
            is_stretch_CN: bool, where there is a stretch.
        """
        vector_CNW = self.protein(protein_CNP) + self.features(features_CNK)
        gate_CN = self.gate(vector_CNW.tanh()).squeeze(2)
        # The softmax runs in at least float32: half precision would lose digits of the weights.
        gate_CN = gate_CN.to(torch.promote_types(gate_CN.dtype, torch.float32))
        # Not minus infinity: a chunk without stretches would get NaN from the softmax.
        gate_CN = gate_CN.masked_fill(~is_stretch_CN, torch.finfo(gate_CN.dtype).min)
        # A chunk without stretches is judged by its DNA alone.
        weight_CN = gate_CN.softmax(1) * is_stretch_CN
        pooled_CW = (vector_CNW * weight_CN[..., None].to(vector_CNW.dtype)).sum(1)
        logit_C: Tensor = self.output(pooled_CW + self.dna(dna_CQ)).squeeze(1)
        return logit_C


def stretch_features(length_aa: Tensor, is_whole_frame: Tensor, chunk_bp: Tensor | int) -> Tensor:
    """Return float32 (..., K): what the head is told of stretches besides their embeddings.

    Args:
        length_aa: The residues of each stretch; 0 where there is none.
        is_whole_frame: bool, whether the stretch is all of its frame.
        chunk_bp: The bases of its chunk.
    """
    # At least 1, so that the logarithm of padding is finite. Padding has a weight of 0 anyway.
    length = length_aa.clamp(min=1).float()
    # A hundred residues are a usual stretch, so these numbers are near 1.
    columns = (is_whole_frame.float(), (length / 100).log(), length / 100, 3 * length / chunk_bp)
    return torch.stack(columns, -1)

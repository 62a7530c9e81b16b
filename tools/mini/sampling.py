"""Draws labelled chunks, balanced and with simulated sequencing errors, on any device.

Shapes: S sequences, J kinds (a sub-class within a class), C chunks of L bases.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tools.mini.genomes import Genomes
from virnucpro.training.drawing import read_with_errors, share_out, weigh_sequences
from virnucpro.training.stretches import reverse_complement

SHARES = {"viral": 0.5, "bacteria": 0.25, "archaea": 0.06, "eukaryote": 0.19}
"""Of the chunks drawn: half viral, and the cellular half as it is met in samples."""


class Sampler:
    """Draws chunks of one length.

    Classes come in `SHARES`, sub-classes of a class and groups of a sub-class by the square root of
    their bases, the sequences of a group by their bases.

    Attributes:
        kinds: `class/sub-class`, the names of the kinds.
        kind_S: int64, the kind of each sequence, an index of `kinds`.
        weight_S: float64, how often each sequence is drawn; 1 in all.
    """

    def __init__(self, genomes: Genomes, length_bp: int, generator: torch.Generator) -> None:
        self.length_bp = length_bp
        self._genomes = genomes
        self._generator = generator
        labels = genomes.labels
        kinds_J2, self.kind_S = torch.unique(
            torch.stack((labels["class"], labels["sub"]), 1), dim=0, return_inverse=True
        )
        self._class_J = kinds_J2[:, 0]
        self.kinds = [
            f"{genomes.names['class'][klass]}/{genomes.names['sub'][sub]}"
            for klass, sub in kinds_J2.tolist()
        ]
        self._room_S = (genomes.length_S - length_bp + 1).clamp(min=0)
        self.weight_S = self._balance()
        is_viral_J = [kind.startswith("viral/") for kind in self.kinds]
        self._is_viral_J = torch.tensor(is_viral_J, device=self._class_J.device)

    def draw_labelled(self, num_chunks: int) -> tuple[Tensor, Tensor]:
        """Return chunks of either strand with errors, uint8 (C, L), and whether each is viral."""
        codes_CL, sequence_C = self.draw_chunks(self.weight_S, num_chunks, has_errors=True)
        is_reverse_C1 = self._uniform(num_chunks, 1) < 0.5
        codes_CL = torch.where(is_reverse_C1, reverse_complement(codes_CL), codes_CL)
        return codes_CL, self._is_viral_J[self.kind_S[sequence_C]]

    def draw_chunks(
        self, weight_S: Tensor, num_chunks: int, *, has_errors: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the codes of chunks, uint8 (C, L), and the sequence of each, int64 (C,).

        Args:
            weight_S: How often each sequence is drawn.
            num_chunks: C.
            has_errors: Simulate sequencing errors.
        """
        device, generator = weight_S.device, self._generator
        sequence_C = torch.multinomial(weight_S, num_chunks, True, generator=generator)
        uniform_C = torch.rand(num_chunks, dtype=torch.float64, device=device, generator=generator)
        start_C = self._genomes.start_S[sequence_C]
        first_C = start_C + (uniform_C * self._room_S[sequence_C]).long()
        if not has_errors:
            index_CL = first_C[:, None] + torch.arange(self.length_bp, device=device)
            return self._genomes.codes_N[index_CL], sequence_C
        end_C = start_C + self._genomes.length_S[sequence_C]
        read = self._genomes.codes_N.__getitem__
        return read_with_errors(read, first_C, end_C, self.length_bp, generator), sequence_C

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.weight_S.device, generator=self._generator)

    def kind_of(self, sequence_C: Tensor) -> list[str]:
        """Return the name of each sequence's kind."""
        return [self.kinds[kind] for kind in self.kind_S[sequence_C].tolist()]

    def _balance(self) -> Tensor:
        """Return `weight_S`."""
        names = self._genomes.names["class"]
        share_J = torch.tensor(
            [SHARES[names[klass]] for klass in self._class_J.tolist()], dtype=torch.float64
        ).to(self._class_J.device)
        share_J = share_J * share_out(
            torch.bincount(self.kind_S, self._room_S.double()).sqrt(), self._class_J
        )
        return weigh_sequences(self._room_S, self.kind_S, self._genomes.labels["group"], share_J)

"""Reads chunks of stored records, with sequencing errors and codon mutations.

Shapes: C chunks of L bases.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from virnucpro.backend.arrays import BoolArray, Int64Array
from virnucpro.config.frame_rule import FrameRule
from virnucpro.sequences.frame_store import FrameStore, open_frame_store
from virnucpro.sequences.frames import reverse_complement
from virnucpro.training.drawing import read_with_errors
from virnucpro.training.mutation import Mutator
from virnucpro.training.stretches import AMBIGUOUS, CODE_OF_BYTE

_CODES = np.frombuffer(CODE_OF_BYTE, np.uint8)
_LETTERS = np.frombuffer(b"ACGTN", np.uint8)
_BLOCK_CHUNKS = 64
"""Chunks that are mutated at once: more would not fit the cache of a core."""


class Places(NamedTuple):
    """Where chunks lie, the longest first.

    Attributes:
        record_C: int64, the record of each chunk.
        start_C: int64, its first base in the record.
        length_C: int64, its bases.
        record_length_C: int64, the bases of its record.
        is_viral_C: bool.
    """

    record_C: Int64Array
    start_C: Int64Array
    length_C: Int64Array
    record_length_C: Int64Array
    is_viral_C: BoolArray

    def take(self, chunks: Int64Array | slice) -> Places:
        """Return the places of some of the chunks."""
        return Places(*(column[chunks] for column in self))  # type: ignore[arg-type]


class ChunkReader:
    """Reads chunks, and is small when it is pickled for a worker."""

    def __init__(self, directory: Path, rule: FrameRule, max_mutation_rate: float) -> None:
        """Prepare to read.

        Args:
            directory: The frame store that holds the records.
            rule: By its genetic code codons are mutated, in the stretches that it takes.
            max_mutation_rate: The largest share of the codons of a stretch that is drawn anew.
        """
        self._settings = (directory, rule, max_mutation_rate)
        self._directory = directory
        if rule.kind == "open":
            # The longest stretches are mutated then, as most genes are among them.
            rule = FrameRule("stretches", genetic_code=rule.genetic_code)
        self._rule = rule
        self._max_mutation_rate = max_mutation_rate

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files cannot travel to a worker.
        return ChunkReader, self._settings

    def read(self, places: Places, seed: int) -> list[bytes]:
        """Return the letters of chunks, of either strand; `seed` decides all that is random."""
        generator = torch.Generator().manual_seed(seed)
        letters: list[bytes] = []
        # The chunks are sorted by length, so those of a block need little padding.
        for first in range(0, len(places.length_C), _BLOCK_CHUNKS):
            block = places.take(slice(first, first + _BLOCK_CHUNKS))
            rows = _LETTERS[self._read_codes(block, generator).numpy()]
            pairs = zip(rows, block.length_C.tolist(), strict=True)
            letters += [row[:length].tobytes() for row, length in pairs]
        is_reverse_C = torch.rand(len(letters), generator=generator) < 0.5
        return [
            reverse_complement(chunk) if is_reverse else chunk
            for chunk, is_reverse in zip(letters, is_reverse_C.tolist(), strict=True)
        ]

    def _read_codes(self, places: Places, generator: torch.Generator) -> Tensor:
        """Return uint8 (C, L): the codes of chunks, padded to the longest."""

        def read(index_CL: Tensor) -> Tensor:
            low, high = index_CL[:, 0].numpy(), index_CL[:, -1].numpy() + 1
            spans = self._store.read_spans(places.record_C, low, high - low)
            text = np.frombuffer("".join(spans).encode("ascii"), np.uint8)
            before = np.cumsum(high - low) - (high - low)
            return torch.from_numpy(_CODES[text[index_CL.numpy() + (before - low)[:, None]]])

        start_C, end_C, length_C = map(
            torch.from_numpy, (places.start_C, places.record_length_C, places.length_C)
        )
        codes_CL = read_with_errors(read, start_C, end_C, max(3, int(length_C.max())), generator)
        is_padding_CL = torch.arange(codes_CL.shape[1]) >= length_C[:, None]
        codes_CL = codes_CL.masked_fill(is_padding_CL, AMBIGUOUS)
        if not self._max_mutation_rate:
            return codes_CL
        mutator = Mutator(self._max_mutation_rate, generator, self._rule.genetic_code)
        return mutator.mutate_chunks(codes_CL, self._rule)

    @cached_property
    def _store(self) -> FrameStore:
        return open_frame_store(self._directory)

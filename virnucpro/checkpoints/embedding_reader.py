"""Reading embeddings by row from any number of parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from virnucpro.backend.arrays import Float32Array, Int64Array
from virnucpro.checkpoints.parts import Part, concatenate_rows, read_part
from virnucpro.errors import CheckpointError, count_who


class EmbeddingReader:
    """Reads embeddings by row from any number of parts. It needs 16 bytes of memory per row.

    No file stays open between calls, and threads may share a reader.

    Attributes:
        num_rows: Rows in all parts.
        embedding_dim: Numbers in an embedding; 0 if there are no parts.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        """Read the rows of `parts`, but not their embeddings.

        Raises:
            CheckpointError: A part cannot be read, or the parts differ in `embedding_dim`.
        """
        self._parts = [read_part(path) for path in parts]
        # Checked here: `gather` fills one array, into which another size would not fit.
        dims = {part.identity.embedding_dim for part in self._parts}
        if len(dims) > 1:
            raise CheckpointError(
                f"{parts[0].parent}: its parts have embeddings of {sorted(dims)} numbers, wanted "
                "one size; they come from different runs"
            )
        # A slot is a position in all parts laid end to end; each part begins at one slot.
        # Only rows are read here, 8 bytes each. The embeddings are a thousand times as large.
        rows = concatenate_rows(self._parts)
        # If several parts hold a row, the first part counts: parts of one identity are equal.
        self._slots = np.argsort(rows, kind="stable")
        self._sorted_rows = rows[self._slots]
        self._first_slots = np.cumsum([0, *(part.num_rows for part in self._parts)])
        self.num_rows = len(rows)
        self.embedding_dim = max(dims, default=0)

    def gather(self, rows: Int64Array) -> Float32Array:
        """Return the embeddings of `rows` in their order: float32 (n, E).

        Raises:
            CheckpointError: A row is in no part, or a part has disappeared.
        """
        embeddings_NE = np.empty((len(rows), self.embedding_dim), np.float32)
        self.gather_into(embeddings_NE, rows)
        return embeddings_NE

    def gather_into(self, into: Float32Array | Sequence[Float32Array], rows: Int64Array) -> None:
        """Read the embeddings of `rows` into the arrays (E,) of `into`, one for each row.

        Raises:
            CheckpointError: As `gather`.
        """
        for part, places, lines in self._locate(rows):
            part.read_embeddings(lines, [into[place] for place in places.tolist()])

    def gather_ids(self, rows: Int64Array) -> list[str]:
        """Return the ids of `rows` in their order.

        Raises:
            CheckpointError: As `gather`, or a part holds no ids.
        """
        ids = [""] * len(rows)
        for part, places, lines in self._locate(rows):
            first = int(lines[0])
            names = part.read_ids(first, int(lines[-1]) + 1)
            for place, line in zip(places.tolist(), lines.tolist(), strict=True):
                ids[place] = names[line - first]
        return ids

    def _locate(self, rows: Int64Array) -> Iterator[tuple[Part, Int64Array, Int64Array]]:
        """Yield each part that holds some of `rows`, their places in `rows`, and their lines in it.

        The caller maps one part at a time, so that many parts need no more memory or open files.
        """
        # A row that is missing has the same place on both sides.
        found = np.searchsorted(self._sorted_rows, rows, side="left")
        missing = found == np.searchsorted(self._sorted_rows, rows, side="right")
        if missing.any():
            who = count_who(int(missing.sum()), "row", "are", of=len(rows))
            raise CheckpointError(
                f"{who} in no part (first: row {rows[missing][0]}); repeat, with --resume, "
                "the command that wrote the parts"
            )
        slots = self._slots[found]
        # In the order of the slots, each part is visited once, and read from front to back.
        order = np.argsort(slots)
        bounds = np.searchsorted(slots[order], self._first_slots)
        for number in np.flatnonzero(np.diff(bounds)):
            chosen = order[bounds[number] : bounds[number + 1]]
            yield self._parts[number], chosen, slots[chosen] - self._first_slots[number]

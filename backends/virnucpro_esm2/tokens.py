"""ESM-2's alphabet of 33 tokens, and the collator that packs proteins into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from virnucpro.backend.interface import TokenBatch
from virnucpro_esm2 import MAX_RESIDUES

TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""A token's id is its index (fair-esm's `Alphabet.from_architecture("ESM-1b")`)."""

UNKNOWN = TOKENS.index("<unk>")
BOS = bytes([TOKENS.index("<cls>")])
EOS = bytes([TOKENS.index("<eos>")])
TOKEN_OF_BYTE = bytes(
    TOKENS.index(chr(byte)) if chr(byte) in TOKENS else UNKNOWN for byte in range(256)
)


def tokenize(sequence: str) -> bytes:
    """Return the token ids of one protein, one byte each, cut to 1,024 residues.

    A letter outside the alphabet (J, `*`, lower case) becomes one `<unk>`; fair-esm stops there
    with a KeyError, and transformers makes one `<unk>` of a whole run of them.
    """
    letters = sequence[:MAX_RESIDUES].encode("ascii", "replace")
    return BOS + letters.translate(TOKEN_OF_BYTE) + EOS


class Esm2Collator:
    """Packs proteins end to end, each between its BOS and EOS."""

    def __call__(
        self, rows: np.ndarray[Any, np.dtype[np.int64]], sequences: Sequence[str]
    ) -> TokenBatch:
        """Return the batch of `sequences`, which stand for `rows`.

        An empty sequence is BOS and EOS alone and has no residue to average: its embedding is NaN.
        """
        pieces = [tokenize(sequence) for sequence in sequences]
        lengths = [len(piece) for piece in pieces]
        token_ids = np.frombuffer(b"".join(pieces), dtype=np.uint8).astype(np.int64)
        return TokenBatch(
            token_ids_T=torch.from_numpy(token_ids),
            lengths_B=torch.tensor(lengths, dtype=torch.int64),
            max_length=max(lengths),
            rows=rows,
        )

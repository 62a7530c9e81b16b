"""ESM-2's alphabet of 33 tokens, and the collator that packs proteins into batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from virnucpro.backend.arrays import Int64Array, UInt8Array
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.tokens import pack_tokens
from virnucpro_esm2 import MAX_RESIDUES

TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""A token's id is its index (fair-esm's `Alphabet.from_architecture("ESM-1b")`)."""

UNKNOWN = TOKENS.index("<unk>")
BOS = bytes([TOKENS.index("<cls>")])
EOS = bytes([TOKENS.index("<eos>")])
# A table of 256 bytes turns a whole protein into tokens by one call of C.
TOKEN_OF_BYTE = bytes(
    TOKENS.index(chr(byte)) if chr(byte) in TOKENS else UNKNOWN for byte in range(256)
)


def tokenize(sequence: str) -> UInt8Array:
    """Return the token ids of one protein, cut to 1,024 residues.

    Each letter outside the alphabet (J, `*`, lower case) becomes one `<unk>`. fair-esm raises a
    KeyError there, and transformers makes one `<unk>` of several such letters in a row.
    """
    # "replace" gives one byte for each letter, so every residue stays one token.
    letters = sequence[:MAX_RESIDUES].encode("ascii", "replace")
    token_ids = BOS + letters.translate(TOKEN_OF_BYTE) + EOS
    return np.frombuffer(token_ids, dtype=np.uint8)


class Esm2Collator:
    """Packs proteins end to end, each between its BOS and EOS."""

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`.

        An empty sequence is only BOS and EOS, without a residue to average: its embedding is NaN.
        """
        return pack_tokens(rows, [tokenize(sequence) for sequence in sequences])

"""Turns DNA into DNABERT-S's byte-pair tokens, packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.tokens import pack_tokens
from virnucpro.errors import WeightsError


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in `path`, without the truncation and padding that the file asks for.

    The published tokenizer.json truncates and pads to 2,000 tokens. transformers ignores that too.

    Raises:
        WeightsError: This version of `tokenizers` cannot read the file.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise WeightsError(f"{path}: not a tokenizer of the `tokenizers` library ({error})") from (
            error
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class BpeCollator:
    """Tokenizes sequences with a tokenizer.json; see `virnucpro.backend.interface.Collator`."""

    def __init__(self, tokenizer_path: Path) -> None:
        self._tokenizer_path = tokenizer_path
        self._tokenizer = read_tokenizer(tokenizer_path)

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the path is pickled, because the tokenizer itself is larger than the pipe to a
        # worker. If the worker dies at once (in a script without `if __name__ == "__main__"`), the
        # process that fills the pipe would wait for ever.
        return BpeCollator, (self._tokenizer_path,)

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`, each with CLS and SEP and none of them cut."""
        # One at a time: `encode_batch` starts threads of the library. They would compete for the
        # cores that the loader's workers share, and the library warns when a process with such
        # threads forks.
        ids = [np.array(self._tokenizer.encode(s).ids, dtype=np.int64) for s in sequences]
        return pack_tokens(rows, ids)

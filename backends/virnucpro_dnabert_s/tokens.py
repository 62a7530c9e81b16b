"""Turns DNA into DNABERT-S's byte-pair tokens, packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from virnucpro.backend.interface import TokenBatch
from virnucpro.errors import WeightsError


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in `path`, which neither truncates nor pads whatever the file says.

    The published tokenizer.json stores both, to 2,000 tokens; transformers ignores that too.

    Raises:
        WeightsError: The file is no tokenizer.json that this `tokenizers` understands.
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
        # By path: the tokenizer itself outgrows the pipe to a worker, and whoever starts one that
        # dies at once (a script without `if __name__ == "__main__"`) would wait for ever.
        return BpeCollator, (self._tokenizer_path,)

    def __call__(
        self, rows: np.ndarray[Any, np.dtype[np.int64]], sequences: Sequence[str]
    ) -> TokenBatch:
        """Return the batch of `sequences`, each with CLS and SEP and none of them cut."""
        # One at a time: only `encode_batch` starts the library's threads, which would oversubscribe
        # the cores that DataLoader workers already share, and complain when those are forked.
        token_ids = [np.array(self._tokenizer.encode(s).ids, dtype=np.int64) for s in sequences]
        lengths_B = np.array([len(ids) for ids in token_ids], dtype=np.int64)
        return TokenBatch(
            token_ids_T=torch.from_numpy(np.concatenate(token_ids)),
            lengths_B=torch.from_numpy(lengths_B),
            max_length=int(lengths_B.max()),
            rows=rows,
        )

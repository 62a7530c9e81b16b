"""Turns DNA into DNABERT-S's byte-pair tokens, packed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import TokenBatch
from virnucpro.backend.native import explaining_panics
from virnucpro.backend.tokens import pack_tokens
from virnucpro.backend.weights import read_json
from virnucpro.errors import WeightsError, brief

_MAX_SPECIAL_TOKENS = 16
_OTHER_LETTERS = "RYSWKMBDHVX-."
_HARMLESS_STEPS = {
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Strip", "StripAccents"),
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace"),
    *("Punctuation", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}
# With one repetition and no alternatives, a search cannot take exponential time.
_SIMPLE_PATTERN = re.compile(r"[^\\()|*+?{}]*([*+?]|\{\d+(,\d*)?\})?[^\\()|*+?{}]*")


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in `path`, without the truncation and padding that the file asks for.

    The published tokenizer.json truncates and pads to 2,000 tokens. transformers ignores that too.

    Raises:
        WeightsError: This version of `tokenizers` cannot read the file.
    """
    _check_steps(path, read_json(path))
    try:
        with explaining_panics(path):
            tokenizer = Tokenizer.from_file(str(path))
    except WeightsError:
        raise
    # The library raises nothing narrower.
    except Exception as error:
        raise WeightsError(f"{path}: not a tokenizer of the `tokenizers` library ({error})") from (
            error
        )
    # Cutting would lose bases in silence. Padding would be done twice, because batches are packed.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokens(path: Path, vocab_size: int) -> None:
    """Check that the tokens of a tokenizer.json are those of a model with `vocab_size` words.

    Raises:
        WeightsError: There are token ids beyond the vocabulary, or far too many tokens.
    """
    tokenizer = read_tokenizer(path)
    # With every letter that a record may have: each kind makes tokens in a way of its own.
    sample = "ACGTN" * 20 + _OTHER_LETTERS
    with explaining_panics(path):
        tokens = tokenizer.encode(sample).ids
    if len(tokens) > len(sample) + _MAX_SPECIAL_TOKENS:
        raise WeightsError(
            f"{path}: makes {len(tokens)} tokens of {len(sample)} letters; the file is damaged"
        )
    # The ids of the sample too: a post-processor adds tokens that the vocabulary may lack.
    highest = max([*tokenizer.get_vocab().values(), *tokens], default=0)
    if highest >= vocab_size:
        raise WeightsError(
            f"{path}: has the token id {highest}, but the model's vocab_size is {vocab_size}; give "
            "a directory whose files belong together"
        )


def _check_steps(path: Path, document: dict[str, Any]) -> None:
    """Refuse steps that can make any amount of text of a few letters, or need time without end.

    Raises:
        WeightsError: There is such a step, or one that this check does not know.
    """
    for part, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        steps = [document.get(part)]
        while steps:
            step = steps.pop()
            if isinstance(step, dict) and step.get("type") == "Sequence":
                steps += step.get(inner, [])
            elif step is not None and not _is_harmless(step):
                raise WeightsError(
                    f"{path}: refused, because of its {part} {brief(step)}; it could take all "
                    "memory or time"
                )
    model = document.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise WeightsError(f"{path}: refused, because dropout makes its tokens random")


def _is_harmless(step: Any) -> bool:
    kind, pattern = step["type"], step.get("pattern")
    # It may put no more letters than there were.
    if kind == "Replace":
        text = pattern.get("String")
        # An empty text would be found between any two letters.
        return bool(text) and len(step["content"]) <= len(text)
    if kind == "Split":
        return "String" in pattern or bool(_SIMPLE_PATTERN.fullmatch(pattern["Regex"]))
    return kind in _HARMLESS_STEPS


class BpeCollator:
    """Tokenizes sequences with a tokenizer.json; see `virnucpro.backend.interface.Collator`."""

    def __init__(self, tokenizer_path: Path) -> None:
        self._tokenizer_path = tokenizer_path
        self._tokenizer = read_tokenizer(tokenizer_path)
        # Otherwise `encode_batch_fast` starts threads. They would compete for the cores that the
        # loader's workers share, and the library warns when a process with threads forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the path is pickled, because the tokenizer itself is larger than the pipe to a
        # worker. If the worker dies at once (in a script without `if __name__ == "__main__"`), the
        # process that fills the pipe would wait for ever.
        return BpeCollator, (self._tokenizer_path,)

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`, each with CLS and SEP and none of them cut."""
        # Not `encode`, which also notes where each token lies, and takes a quarter longer.
        encode = self._tokenizer.encode_batch_fast
        # One at a time, because what the library returns is much larger than the ids.
        ids = [np.array(encode([sequence])[0].ids, dtype=np.int64) for sequence in sequences]
        return pack_tokens(rows, ids)

"""Tokenizes by the tokenizer that lies beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.arrays import Int64Array
from virnucpro.backend.interface import Alphabet, TokenBatch
from virnucpro.backend.native import explaining_panics
from virnucpro.backend.tokens import pack_tokens
from virnucpro.errors import WeightsError
from virnucpro_transformers.weights import guarded, import_transformers, read_config

_ALL_LETTERS: dict[Alphabet, str] = {"protein": "ACDEFGHIKLMNPQRSTVWY", "dna": "ACGTAACCGGTTGATC"}


class AutoCollator:
    """Cuts sequences, tokenizes them, and packs the tokens with the tokenizer's special ones."""

    def __init__(
        self, tokenizer: Any, max_letters: int, max_tokens: int | None, *, has_spaces: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._max_letters = max_letters
        self._max_tokens = max_tokens
        self._has_spaces = has_spaces

    def __call__(self, rows: Int64Array, sequences: Sequence[str]) -> TokenBatch:
        """Return the batch of `sequences`, packed end to end."""
        # Letters are cut first: a tokenizer would read a whole chromosome before it cuts tokens.
        letters = [sequence[: self._max_letters] for sequence in sequences]
        if self._has_spaces:
            letters = [" ".join(one) for one in letters]
        encoded = self._tokenizer(
            letters,
            # The tokenizer cuts before it adds its special tokens, so the last one is not lost.
            truncation=self._max_tokens is not None,
            max_length=self._max_tokens,
            # The tokens are packed, so there is nothing to mask.
            return_attention_mask=False,
        )
        return pack_tokens(rows, [np.array(ids, np.int64) for ids in encoded["input_ids"]])


def load_collator(path: Path, alphabet: Alphabet, max_letters: int) -> AutoCollator:
    """Return the collator of a directory.

    Some tokenizers of proteins want spaces between the residues, and nothing in their files says
    so. Therefore both are tried.

    Raises:
        WeightsError: There is no tokenizer, or it does not read the alphabet.
    """
    tokenizer = load_tokenizer(path)
    letters = _ALL_LETTERS[alphabet]
    has_spaces = next(
        (spaces for spaces in (False, True) if _reads(tokenizer, letters, alphabet, spaces)), None
    )
    if has_spaces is None:
        raise WeightsError(
            f"{path}: its tokenizer does not read {alphabet} letters, with or without spaces; "
            "choose a model for them"
        )
    max_tokens = count_positions(read_config(path))
    return AutoCollator(tokenizer, max_letters, max_tokens, has_spaces=has_spaces)


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer in a directory.

    Raises:
        WeightsError: There is none, or it is damaged or needs code of its own.
    """
    with guarded(path), explaining_panics(path):
        return import_transformers().AutoTokenizer.from_pretrained(
            # Never from the network: the files that were digested are the files that are used.
            path,
            local_files_only=True,
            trust_remote_code=False,
        )


def count_positions(config: Any) -> int | None:
    """Return how many tokens a model has positions for; None for rotary and relative ones."""
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    num_positions = getattr(config, "max_position_embeddings", None)
    # The models of RoBERTa's kind, such as ESM-1b, count positions from behind the padding's id.
    return num_positions and num_positions - (getattr(config, "pad_token_id", 0) or 0) - 1


def _reads(tokenizer: Any, letters: str, alphabet: Alphabet, has_spaces: bool) -> bool:
    ids = tokenizer(" ".join(letters) if has_spaces else letters, add_special_tokens=False)
    tokens = ids["input_ids"]
    has_unknown = tokenizer.unk_token_id in tokens
    # A protein must have a token for each residue, or neighbours were joined to one unknown word.
    return not has_unknown and (alphabet == "dna" or len(tokens) == len(letters))

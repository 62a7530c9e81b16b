"""Open frames and their tokens as the pipeline makes them, for whole batches on any device.

The rules are those of `virnucpro.frames` and of the two backends' collators; a test compares.

Shapes: C chunks of L bases, F open frames, K codons, T tokens, W words of DNA of k bases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from virnucpro_esm2.tokens import TOKENS

from tools.mini.genomes import AMBIGUOUS

PROTEIN_PAD, PROTEIN_MASK = TOKENS.index("<pad>"), TOKENS.index("<mask>")
DNA_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
DNA_PAD, DNA_MASK = DNA_SPECIAL.index("[PAD]"), DNA_SPECIAL.index("[MASK]")

_LENGTH_MULTIPLE = 8  # fast attention wants masks of rows aligned to 16 bytes
_STOP, _NOTHING = len(TOKENS), len(TOKENS) + 1
NO_CODON = 64
"""Three bases of which one is ambiguous or beyond the end."""

# The standard genetic code for bases in the order A, C, G, T; the last entry is for `NO_CODON`.
TOKEN_OF_CODON = torch.tensor(
    [
        _STOP if letter == "*" else TOKENS.index(letter)
        for letter in "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
    ]
    + [_NOTHING]
)


class Frames(NamedTuple):
    """The open frames of a batch of chunks, ordered by chunk and then by frame code.

    Attributes:
        chunk_F: int64, the chunk of each.
        dna_FT: int64, the tokens of its DNA, padded.
        protein_FT: int64, the tokens of its protein, padded.
    """

    chunk_F: Tensor
    dna_FT: Tensor
    protein_FT: Tensor


def make_frames(
    codes_CL: Tensor, word_bp: int, mutate: Callable[[Tensor], Tensor] | None = None
) -> Frames:
    """Return the open frames of chunks of one length (at least 3), tokenized.

    Args:
        codes_CL: uint8, bases as `tools.mini.genomes` codes them.
        word_bp: The bases in a word of DNA.
        mutate: Changes the codons of open frames, int64 (F, K), and makes no stops.
    """
    forward_CL = codes_CL.long()
    other_CL = torch.where(forward_CL == AMBIGUOUS, AMBIGUOUS, 3 - forward_CL).flip(1)
    strands_C2L = torch.stack((forward_CL, other_CL), 1)
    tokens_C6K = torch.stack([_translate(strands_C2L, offset) for offset in range(3)], 2).flatten(
        1, 2
    )
    length_C6 = (tokens_C6K < _STOP).sum(2)
    is_open_C6 = (length_C6 > 0) & ~(tokens_C6K == _STOP).any(2)
    chunk_F, code_F = is_open_C6.nonzero(as_tuple=True)
    length_F = length_C6[chunk_F, code_F]
    dna_FL, offset_F = strands_C2L[chunk_F, code_F // 3], code_F % 3
    tokens_FK = tokens_C6K[chunk_F, code_F]
    if mutate is not None:
        dna_FL, tokens_FK = _exchange_codons(dna_FL, offset_F, mutate)
    return Frames(
        chunk_F,
        _tokenize_dna(dna_FL, offset_F, length_F, word_bp),
        _tokenize_proteins(tokens_FK, length_F),
    )


def first_word_id(num_bases: int) -> int:
    """Return the token of the first DNA word of so many bases; all shorter ones come before."""
    return len(DNA_SPECIAL) + (4**num_bases - 4) // 3


def _translate(strands_C2L: Tensor, offset: int) -> Tensor:
    """Return int64 (C, 2, K): the tokens of a frame's codons; K is that of the longest frame."""
    length = strands_C2L.shape[2]
    num_codons = (length - offset) // 3
    codons = strands_C2L[:, :, offset : offset + 3 * num_codons].unflatten(2, (num_codons, 3))
    tokens = TOKEN_OF_CODON.to(codons.device)[_number(codons)]
    return functional.pad(tokens, (0, length // 3 - num_codons), value=_NOTHING)


def _number(codons: Tensor) -> Tensor:
    """Return the numbers of codons, whose three bases are the last dimension."""
    number = 16 * codons[..., 0] + 4 * codons[..., 1] + codons[..., 2]
    return number.masked_fill((codons == AMBIGUOUS).any(-1), NO_CODON)


def _exchange_codons(
    dna_FL: Tensor, offset_F: Tensor, mutate: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the DNA and the tokens of its codons (F, K) after `mutate`."""
    num_codons = dna_FL.shape[1] // 3
    padded_FL = functional.pad(dna_FL, (0, 2), value=AMBIGUOUS)
    index_FL = offset_F[:, None] + torch.arange(3 * num_codons, device=dna_FL.device)
    codons_FK3 = padded_FL.gather(1, index_FL).unflatten(1, (num_codons, 3))
    number_FK = mutate(_number(codons_FK3))
    bases_FK3 = torch.stack((number_FK // 16, number_FK // 4 % 4, number_FK % 4), 2)
    bases_FK3 = torch.where((number_FK == NO_CODON)[..., None], codons_FK3, bases_FK3)
    changed_FL = padded_FL.scatter(1, index_FL, bases_FK3.flatten(1))[:, : dna_FL.shape[1]]
    return changed_FL, TOKEN_OF_CODON.to(number_FK.device)[number_FK]


def _tokenize_proteins(tokens_FK: Tensor, length_F: Tensor) -> Tensor:
    num_tokens = _round_up(tokens_FK.shape[1] + 2)
    is_residue_FK = tokens_FK < _STOP
    # Ambiguous codons leave no gap; what they would write goes to a column that is cut off.
    column_FK = torch.where(is_residue_FK, is_residue_FK.cumsum(1), num_tokens)
    padded_FT = tokens_FK.new_full((len(tokens_FK), num_tokens + 1), PROTEIN_PAD)
    padded_FT.scatter_(1, column_FK, tokens_FK)
    padded_FT.scatter_(1, length_F[:, None] + 1, TOKENS.index("<eos>"))
    padded_FT[:, 0] = TOKENS.index("<cls>")
    return padded_FT[:, :num_tokens]


def _tokenize_dna(dna_FL: Tensor, offset_F: Tensor, length_F: Tensor, word_bp: int) -> Tensor:
    num_bases = dna_FL.shape[1]
    num_words = -(-num_bases // word_bp)
    size_F = torch.minimum(3 * length_F + 1, num_bases - offset_F)
    column_L = torch.arange(num_words * word_bp, device=dna_FL.device)
    index_FL = (offset_F[:, None] + column_L).clamp(max=num_bases - 1)
    words_FWk = dna_FL.gather(1, index_FL).unflatten(1, (num_words, word_bp))
    is_base_FWk = (column_L < size_F[:, None]).unflatten(1, (num_words, word_bp))
    number_FW = torch.zeros_like(words_FWk[..., 0])
    for digit_FW, is_base_FW in zip(words_FWk.unbind(2), is_base_FWk.unbind(2), strict=True):
        number_FW = torch.where(is_base_FW, 4 * number_FW + digit_FW, number_FW)
    bases_FW = is_base_FWk.sum(2)
    first_ids = torch.tensor(
        [DNA_PAD, *(first_word_id(bases) for bases in range(1, word_bp + 1))], device=dna_FL.device
    )
    tokens_FW = first_ids[bases_FW] + number_FW
    is_unknown_FW = ((words_FWk == AMBIGUOUS) & is_base_FWk).any(2)
    tokens_FW = tokens_FW.masked_fill(is_unknown_FW, DNA_SPECIAL.index("[UNK]"))
    num_tokens = _round_up(num_words + 2)
    tokens_FT = functional.pad(tokens_FW, (1, num_tokens - num_words - 1), value=DNA_PAD)
    tokens_FT[:, 0] = DNA_SPECIAL.index("[CLS]")
    end_F1 = (bases_FW > 0).sum(1, keepdim=True) + 1
    return tokens_FT.scatter(1, end_F1, DNA_SPECIAL.index("[SEP]"))


def _round_up(num_tokens: int) -> int:
    return -(-num_tokens // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE

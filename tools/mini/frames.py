"""Open frames and their tokens as the pipeline makes them, for whole batches on any device.

The rules are those of `sequences.frames` and of the two backends' collators; a test compares.

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
NO_CODON = 64
"""Three bases of which one is ambiguous or beyond the end."""

# The standard genetic code for bases in the order A, C, G, T.
_LETTERS = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
_STOPS = [number for number, letter in enumerate(_LETTERS) if letter == "*"]
NO_RESIDUE = len(TOKENS)
TOKEN_OF_CODON = torch.tensor(
    [NO_RESIDUE if letter == "*" else TOKENS.index(letter) for letter in _LETTERS] + [NO_RESIDUE]
)
"""The residue of each codon; the last is that of `NO_CODON`."""


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
    # Bytes as long as possible: most chunks have no open frame.
    other_CL = torch.where(codes_CL == AMBIGUOUS, AMBIGUOUS, 3 - codes_CL).flip(1)
    strands_C2L = torch.stack((codes_CL, other_CL), 1)
    codons_C6K = _number_codons(strands_C2L)
    has_stop_C6 = sum(codons_C6K == stop for stop in _STOPS).bool().any(2)
    is_open_C6 = (codons_C6K != NO_CODON).any(2) & ~has_stop_C6
    chunk_F, code_F = is_open_C6.nonzero(as_tuple=True)
    codons_FK = codons_C6K[chunk_F, code_F].long()
    dna_FL, offset_F = strands_C2L[chunk_F, code_F // 3].long(), code_F % 3
    if mutate is not None:
        codons_FK = mutate(codons_FK)
        dna_FL = _write_codons(dna_FL, offset_F, codons_FK)
    length_F = (codons_FK != NO_CODON).sum(1)
    return Frames(
        chunk_F,
        _tokenize_dna(dna_FL, offset_F, length_F, word_bp),
        _tokenize_proteins(TOKEN_OF_CODON.to(codons_FK.device)[codons_FK], length_F),
    )


def first_word_id(num_bases: int) -> int:
    """Return the token of the first DNA word of so many bases; all shorter ones come before."""
    return len(DNA_SPECIAL) + (4**num_bases - 4) // 3


def _number_codons(strands_C2L: Tensor) -> Tensor:
    """Return uint8 (C, 6, K): the codons of each frame; K is the number in the longest."""
    first, second, third = (strands_C2L[:, :, shift : shift - 2 or None] for shift in range(3))
    is_ambiguous = (first | second | third) >= AMBIGUOUS
    number = (16 * first + 4 * second + third).masked_fill(is_ambiguous, NO_CODON)
    num_codons = strands_C2L.shape[2] // 3
    number = functional.pad(number, (0, 3 * num_codons - number.shape[2]), value=NO_CODON)
    return number.unflatten(2, (num_codons, 3)).transpose(2, 3).flatten(1, 2)


def _write_codons(dna_FL: Tensor, offset_F: Tensor, codons_FK: Tensor) -> Tensor:
    """Return the DNA with these codons in it; where there is none it stays."""
    length = dna_FL.shape[1]
    padded_FL = functional.pad(dna_FL, (0, 2))
    index_FL = offset_F[:, None] + torch.arange(3 * codons_FK.shape[1], device=dna_FL.device)
    bases_FK3 = torch.stack((codons_FK // 16, codons_FK // 4 % 4, codons_FK % 4), 2)
    is_codon_FL = (codons_FK != NO_CODON).repeat_interleave(3, 1)
    bases_FL = torch.where(is_codon_FL, bases_FK3.flatten(1), padded_FL.gather(1, index_FL))
    return padded_FL.scatter(1, index_FL, bases_FL)[:, :length]


def _tokenize_proteins(tokens_FK: Tensor, length_F: Tensor) -> Tensor:
    num_tokens = _round_up(tokens_FK.shape[1] + 2)
    is_residue_FK = tokens_FK != NO_RESIDUE
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

"""The longest stretches between stops, and the tokens of chunks, for whole batches on any device.

Shapes: C chunks of L bases, 6 frames of K codons (padded to those of the first frame), N stretches
of a chunk, T tokens, W words of DNA of k bases.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from virnucpro_esm2.tokens import TOKENS

from tools.mini.genomes import AMBIGUOUS
from virnucpro.scoring.chunk_head import stretch_features

PROTEIN_PAD, PROTEIN_MASK = TOKENS.index("<pad>"), TOKENS.index("<mask>")
DNA_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
DNA_PAD, DNA_MASK = DNA_SPECIAL.index("[PAD]"), DNA_SPECIAL.index("[MASK]")

_LENGTH_MULTIPLE = 8  # fast attention wants masks of rows aligned to 16 bytes
NO_CODON = 64
"""Three bases of which one is ambiguous or beyond the end."""

# The standard genetic code for bases in the order A, C, G, T.
_LETTERS = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
NO_RESIDUE = len(TOKENS)
TOKEN_OF_CODON = torch.tensor(
    [NO_RESIDUE if letter == "*" else TOKENS.index(letter) for letter in _LETTERS] + [NO_RESIDUE]
)
"""The residue of each codon; the last is that of `NO_CODON`."""


class StretchRule(NamedTuple):
    """Which stretches of a chunk are read.

    Attributes:
        num_stretches: How many at most: the longest ones.
        min_codons: Shorter ones are left out.
    """

    num_stretches: int = 2
    min_codons: int = 20


class Stretches(NamedTuple):
    """The stretches of chunks, each chunk's longest first; equal ones by frame, then by start.

    Attributes:
        length_CN: int64, codons; 0 where a chunk has no such stretch.
        frame_CN: int64, the frame's code: 0 to 2 forward by offset, 3 to 5 the other strand.
        start_CN: int64, the first codon, counted in the frame.
        codons_CNK: uint8, the codons from the start on; `NO_CODON` beyond the stretch.
        is_whole_CN: bool, whether a stretch is all of its frame.
    """

    length_CN: Tensor
    frame_CN: Tensor
    start_CN: Tensor
    codons_CNK: Tensor
    is_whole_CN: Tensor


class ChunkTokens(NamedTuple):
    """What a model reads of chunks of one length.

    Attributes:
        dna_CT: int64, the tokens of each chunk's whole DNA.
        protein_CNT: int64, the tokens of its stretches' proteins, padded.
        features_CNK: float32, what the head is told of the stretches.
        is_stretch_CN: bool, whether there is a stretch.
    """

    dna_CT: Tensor
    protein_CNT: Tensor
    features_CNK: Tensor
    is_stretch_CN: Tensor


def read_chunks(codes_CL: Tensor, rule: StretchRule, word_bp: int) -> ChunkTokens:
    """Return the tokens of chunks of one length (at least 3).

    Args:
        codes_CL: uint8, bases as `tools.mini.genomes` codes them.
        rule: Which stretches count.
        word_bp: The bases in a word of DNA.
    """
    stretches = find_stretches(codes_CL, rule)
    length_CN, is_whole_CN = stretches.length_CN, stretches.is_whole_CN
    return ChunkTokens(
        tokenize_dna(codes_CL, word_bp),
        tokenize_stretches(stretches),
        stretch_features(length_CN, is_whole_CN, codes_CL.shape[1]),
        length_CN > 0,
    )


def find_stretches(codes_CL: Tensor, rule: StretchRule) -> Stretches:
    """Return the stretches of chunks of one length (at least 3).

    Args:
        codes_CL: uint8, bases as `tools.mini.genomes` codes them.
        rule: Which stretches count.
    """
    num_bases = codes_CL.shape[1]
    strands_C2L = torch.stack((codes_CL, reverse_complement(codes_CL)), 1)
    codons_C6K = _number_codons(strands_C2L)
    num_codons = codons_C6K.shape[2]
    is_residue_C6K = (TOKEN_OF_CODON != NO_RESIDUE).to(codes_CL.device)[codons_C6K.int()]
    position_K = torch.arange(num_codons, dtype=torch.int32, device=codes_CL.device)
    break_C6K = torch.where(is_residue_C6K, -1, position_K).cummax(2).values
    length_C6K = position_K - break_C6K
    is_end_C6K = is_residue_C6K & ~functional.pad(is_residue_C6K[..., 1:], (0, 1))
    is_end_C6K &= length_C6K >= rule.min_codons
    # One number ranks a stretch: its length first, then its frame, then its start.
    place_6K = torch.arange(6 * num_codons, dtype=torch.int32, device=codes_CL.device).flip(0)
    rank_C6K = length_C6K * (6 * num_codons) + place_6K.view(6, num_codons)
    rank_CX = rank_C6K.masked_fill(~is_end_C6K, -1).flatten(1)
    num_ranked = min(rule.num_stretches, rank_CX.shape[1])
    rank_CN, index_CN = rank_CX.topk(num_ranked, 1)
    rank_CN, index_CN = (
        functional.pad(x, (0, rule.num_stretches - num_ranked), value=value)
        for x, value in ((rank_CN, -1), (index_CN, 0))
    )
    length_CN = torch.where(rank_CN >= 0, rank_CN // (6 * num_codons), 0).long()
    frame_CN = index_CN // num_codons
    start_CN = (index_CN % num_codons + 1 - length_CN).clamp(min=0)
    index_CNK = (start_CN[..., None] + position_K).clamp(max=num_codons - 1)
    frames_CNK = codons_C6K.gather(1, frame_CN[..., None].expand(-1, -1, num_codons))
    is_inside_CNK = position_K < length_CN[..., None]
    codons_CNK = frames_CNK.gather(2, index_CNK).masked_fill(~is_inside_CNK, NO_CODON)
    is_whole_CN = (length_CN > 0) & (length_CN == (num_bases - frame_CN % 3) // 3)
    return Stretches(length_CN, frame_CN, start_CN, codons_CNK, is_whole_CN)


def write_codons(codes_CL: Tensor, stretches: Stretches, number: int, codons_CK: Tensor) -> Tensor:
    """Return the chunks with other codons in one of their stretches; `NO_CODON` writes nothing.

    Args:
        codes_CL: uint8, the chunks.
        stretches: What `find_stretches` found in them.
        number: Which of a chunk's stretches.
        codons_CK: int64, its codons from its start on.
    """
    bases_CX = torch.stack((codons_CK // 16, codons_CK // 4 % 4, codons_CK % 4), 2).flatten(1)
    is_reverse_C1 = stretches.frame_CN[:, number, None] >= 3
    bases_CX = torch.where(is_reverse_C1, 3 - bases_CX, bases_CX)
    index_CX = bases_of_codons(codes_CL, stretches, number)
    return put_bases(codes_CL, index_CX, codons_CK != NO_CODON, bases_CX)


def put_bases(values_CL: Tensor, index_CX: Tensor, is_codon_CK: Tensor, put_CX: Tensor) -> Tensor:
    """Return the values of bases, with others put where codons are."""
    # What must not be put anywhere goes to a column that is cut off.
    is_base_CX = is_codon_CK.repeat_interleave(3, 1)
    index_CX = index_CX.masked_fill(~is_base_CX, values_CL.shape[1])
    padded = functional.pad(values_CL, (0, 1))
    return padded.scatter(1, index_CX, put_CX.to(values_CL.dtype))[:, :-1]


def bases_of_codons(codes_CL: Tensor, stretches: Stretches, number: int) -> Tensor:
    """Return int64 (C, 3 K): where the bases of a stretch's codons stand in its chunk.

    Beyond the stretch the places mean nothing, but lie in the chunk.
    """
    num_bases = codes_CL.shape[1]
    frame_C1 = stretches.frame_CN[:, number, None]
    first_C1 = frame_C1 % 3 + 3 * stretches.start_CN[:, number, None]
    num_places = 3 * stretches.codons_CNK.shape[2]
    index_CX = first_C1 + torch.arange(num_places, device=codes_CL.device)
    index_CX = torch.where(frame_C1 >= 3, num_bases - 1 - index_CX, index_CX)
    return index_CX.clamp(0, num_bases - 1)


def reverse_complement(codes_CL: Tensor) -> Tensor:
    """Return the other strands of chunks."""
    return torch.where(codes_CL == AMBIGUOUS, AMBIGUOUS, 3 - codes_CL).flip(1)


def first_word_id(num_bases: int) -> int:
    """Return the token of the first DNA word of so many bases; all shorter ones come before."""
    return len(DNA_SPECIAL) + (4**num_bases - 4) // 3


def tokenize_stretches(stretches: Stretches) -> Tensor:
    """Return int64 (C, N, T): the tokens of each stretch's protein, padded."""
    length_CN1 = stretches.length_CN[..., None]
    residues_CNK = TOKEN_OF_CODON.to(length_CN1.device)[stretches.codons_CNK.int()]
    num_codons = residues_CNK.shape[2]
    num_tokens = round_up(num_codons + 2)
    tokens_CNT = functional.pad(residues_CNK, (1, num_tokens - num_codons - 1))
    column_T = torch.arange(num_tokens, device=length_CN1.device)
    tokens_CNT = tokens_CNT.masked_fill(column_T > length_CN1 + 1, PROTEIN_PAD)
    tokens_CNT = tokens_CNT.masked_fill(column_T == length_CN1 + 1, TOKENS.index("<eos>"))
    tokens_CNT[..., 0] = TOKENS.index("<cls>")
    return tokens_CNT


def tokenize_dna(codes_CL: Tensor, word_bp: int) -> Tensor:
    """Return int64 (C, T): the tokens of each chunk's whole DNA, padded."""
    num_bases = codes_CL.shape[1]
    num_words = -(-num_bases // word_bp)
    column_L = torch.arange(num_words * word_bp, device=codes_CL.device)
    words_CWk = codes_CL[:, column_L.clamp(max=num_bases - 1)].long()
    words_CWk = words_CWk.unflatten(1, (num_words, word_bp))
    is_base_Wk = (column_L < num_bases).view(num_words, word_bp)
    number_CW = torch.zeros_like(words_CWk[..., 0])
    for digit_CW, is_base_W in zip(words_CWk.unbind(2), is_base_Wk.unbind(1), strict=True):
        number_CW = torch.where(is_base_W, 4 * number_CW + digit_CW, number_CW)
    first_ids = torch.tensor(
        [first_word_id(bases) for bases in range(1, word_bp + 1)], device=codes_CL.device
    )
    tokens_CW = first_ids[is_base_Wk.sum(1) - 1] + number_CW
    is_unknown_CW = ((words_CWk == AMBIGUOUS) & is_base_Wk).any(2)
    tokens_CW = tokens_CW.masked_fill(is_unknown_CW, DNA_SPECIAL.index("[UNK]"))
    num_tokens = round_up(num_words + 2)
    tokens_CT = functional.pad(tokens_CW, (1, num_tokens - num_words - 1), value=DNA_PAD)
    tokens_CT[:, 0] = DNA_SPECIAL.index("[CLS]")
    tokens_CT[:, num_words + 1] = DNA_SPECIAL.index("[SEP]")
    return tokens_CT


def round_up(num_tokens: int) -> int:
    """Return the next length that attention is fast with."""
    return -(-num_tokens // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def _number_codons(strands_C2L: Tensor) -> Tensor:
    """Return uint8 (C, 6, K): the codons of each frame; K is the number in the longest."""
    first, second, third = (strands_C2L[:, :, shift : shift - 2 or None] for shift in range(3))
    is_ambiguous = (first | second | third) >= AMBIGUOUS
    number = (16 * first + 4 * second + third).masked_fill(is_ambiguous, NO_CODON)
    num_codons = strands_C2L.shape[2] // 3
    number = functional.pad(number, (0, 3 * num_codons - number.shape[2]), value=NO_CODON)
    return number.unflatten(2, (num_codons, 3)).transpose(2, 3).flatten(1, 2)

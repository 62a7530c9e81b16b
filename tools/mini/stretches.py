"""The tokens of chunks and of their stretches, for whole batches on any device.

Shapes: C chunks of L bases, K codons, N stretches of a chunk, F stretches of all chunks, T tokens,
W words of DNA of k bases.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from virnucpro_esm2.attention import Packing
from virnucpro_esm2.tokens import TOKENS

from virnucpro.config.frame_rule import STANDARD_CODE, FrameRule
from virnucpro.scoring.chunk_head import stretch_features
from virnucpro.sequences.frames import translate_codons
from virnucpro.training.stretches import AMBIGUOUS, Stretches, find_stretches

PROTEIN_PAD, PROTEIN_MASK = TOKENS.index("<pad>"), TOKENS.index("<mask>")
DNA_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
DNA_MASK = DNA_SPECIAL.index("[MASK]")

_NO_RESIDUE = len(TOKENS)
_TOKEN_OF_CODON = torch.tensor(
    [
        _NO_RESIDUE if letter == "*" else TOKENS.index(letter)
        for letter in translate_codons(STANDARD_CODE)
    ]
    + [_NO_RESIDUE]
)
"""The residue of each codon; the last is that of `NO_CODON`."""


class ChunkTokens(NamedTuple):
    """What a model reads of chunks of one length.

    Attributes:
        dna_CT: int64, the tokens of each chunk's whole DNA; all chunks have as many.
        protein_CNT: int64, the tokens of its stretches' proteins, padded.
        features_CNK: float32, what the head is told of the stretches.
        is_stretch_CN: bool, whether there is a stretch.
    """

    dna_CT: Tensor
    protein_CNT: Tensor
    features_CNK: Tensor
    is_stretch_CN: Tensor


class Proteins(NamedTuple):
    """The proteins of all stretches, the shortest first, without padding.

    Attributes:
        token_ids_T: int64, the tokens of all.
        packing: Where each protein lies.
        order_F: int64, the stretch of each protein.
    """

    token_ids_T: Tensor
    packing: Packing
    order_F: Tensor

    def spread(self, values_F: Tensor) -> Tensor:
        """Return (T, ...): for each token the value of its protein; proteins are in their order."""
        lengths_F, num_tokens = self.packing.lengths_B, len(self.token_ids_T)
        return values_F.repeat_interleave(lengths_F, dim=0, output_size=num_tokens)

    def sort_back(self, values_FD: Tensor) -> Tensor:
        """Return the rows (F, D) of the proteins in the order of their stretches."""
        return values_FD[self.order_F.argsort()]


def read_chunks(codes_CL: Tensor, rule: FrameRule, word_bp: int) -> ChunkTokens:
    """Return the tokens of chunks of one length (at least 3).

    Args:
        codes_CL: uint8, bases as `virnucpro.training.stretches` codes them.
        rule: Which stretches count.
        word_bp: The bases in a word of DNA.
    """
    stretches = find_stretches(codes_CL, rule)
    length_CN = stretches.length_CN
    num_bases = codes_CL.shape[1]
    is_whole_CN = (length_CN > 0) & (length_CN == (num_bases - stretches.frame_CN % 3) // 3)
    return ChunkTokens(
        tokenize_dna(codes_CL, word_bp),
        tokenize_stretches(stretches),
        stretch_features(length_CN, is_whole_CN, num_bases),
        length_CN > 0,
    )


def pack_proteins(chunks: list[ChunkTokens]) -> Proteins:
    """Return the proteins of chunks, those of each length after the other.

    The CPU waits here for a GPU, because it must know how many tokens there are.
    """
    longest = max(one.protein_CNT.shape[2] for one in chunks)
    padded_FT = torch.cat(
        [
            functional.pad(x, (0, longest - x.shape[1]), value=PROTEIN_PAD)
            for x in (one.protein_CNT.flatten(0, 1) for one in chunks)
        ]
    )
    # On a CPU, sequences of one length attend together.
    lengths_F, order_F = (padded_FT != PROTEIN_PAD).sum(1).sort()
    padded_FT = padded_FT[order_F]
    offsets = functional.pad(lengths_F.cumsum(0, dtype=torch.int32), (1, 0))
    # Attention takes a bound of the lengths as well, and this one needs no waiting for a GPU.
    packing = Packing(lengths_F, offsets, longest)
    return Proteins(padded_FT[padded_FT != PROTEIN_PAD], packing, order_F)


def first_word_id(num_bases: int) -> int:
    """Return the token of the first DNA word of so many bases; all shorter ones come before."""
    return len(DNA_SPECIAL) + ((1 << 2 * num_bases) - 4) // 3


def tokenize_stretches(stretches: Stretches) -> Tensor:
    """Return int64 (C, N, T): the tokens of each stretch's protein, padded."""
    length_CN1 = stretches.length_CN[..., None]
    residues_CNK = _TOKEN_OF_CODON.to(length_CN1.device)[stretches.codons_CNK.int()]
    tokens_CNT = functional.pad(residues_CNK, (1, 1))
    column_T = torch.arange(tokens_CNT.shape[2], device=length_CN1.device)
    tokens_CNT = tokens_CNT.masked_fill(column_T > length_CN1 + 1, PROTEIN_PAD)
    tokens_CNT = tokens_CNT.masked_fill(column_T == length_CN1 + 1, TOKENS.index("<eos>"))
    tokens_CNT[..., 0] = TOKENS.index("<cls>")
    return tokens_CNT


def tokenize_dna(codes_CL: Tensor, word_bp: int) -> Tensor:
    """Return int64 (C, T): the tokens of each chunk's whole DNA."""
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
    tokens_CT = functional.pad(tokens_CW, (1, 1), value=DNA_SPECIAL.index("[SEP]"))
    tokens_CT[:, 0] = DNA_SPECIAL.index("[CLS]")
    return tokens_CT

"""Cutting records into chunks and reading chunks in six frames, many records at a time.

The rules are the original VirNucPro's, its oddities included: chunks overlap by shifts that do not
always add up, so that the last one can be short; a codon with an ambiguous letter translates to
nothing; and the DNA of a frame has one base more than its codons.

Shapes: R records, C chunks, F open frames, P amino acids of all open frames together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

# The standard genetic code (NCBI translation table 1) for bases in the order A, C, G, T.
_AMINO_ACIDS = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
_STOP = ord("*")
_NOTHING = 0

# A codon's number is 16 a + 4 b + c in wrapping 8-bit arithmetic. With 84 for an ambiguous letter
# (16, 4 and 1 times 84 leave 64, 80 and 84) every codon that holds one gets a number above 63.
_AMBIGUOUS = 84
_BASE_CODES = bytes(
    "ACGT".index(chr(byte).upper()) if chr(byte) in "ACGTacgt" else _AMBIGUOUS
    for byte in range(256)
)
_UNTRANSLATED = bytes([_NOTHING]) * (256 - 64)
_FORWARD_CODE = _AMINO_ACIDS + _UNTRANSLATED
_REVERSE_CODE = (
    bytes(
        _AMINO_ACIDS[16 * (3 - codon % 4) + 4 * (3 - codon // 4 % 4) + (3 - codon // 16)]
        for codon in range(64)
    )
    + _UNTRANSLATED
)
_COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")

_FRAME_OFFSETS = np.array([0, 1, 2, 0, 1, 2])
_NUM_FORWARD = 3


class Chunks(NamedTuple):
    """Where chunks lie in records that are laid end to end, in the order of the records.

    Attributes:
        num_chunks: int64 (R,), how many chunks each record has.
        start: int64 (C,), each chunk's first letter, counted from the first record's.
        length: int64 (C,).
    """

    num_chunks: Int64Array
    start: Int64Array
    length: Int64Array


class OpenFrames(NamedTuple):
    """The frames without a stop codon, ordered by chunk and then by frame code.

    Attributes:
        chunk: int64 (F,), index of the chunk that each frame is read from.
        code: uint8 (F,), index into `records.FRAME_NAMES`.
        protein_length: int64 (F,), amino acids of each frame; never 0.
        proteins: The amino acids of all frames end to end, P bytes.
    """

    chunk: Int64Array
    code: UInt8Array
    protein_length: Int64Array
    proteins: bytes


def cut_records(record_length: Int64Array, chunk_length_bp: int, min_length_bp: int = 0) -> Chunks:
    """Return the chunks of records of these lengths; empty and too short records have none."""
    is_cut = record_length >= min_length_bp
    num_chunks = np.where(is_cut, _count_chunks(record_length, chunk_length_bp), 0)
    first_chunk = np.cumsum(num_chunks) - num_chunks
    number = np.arange(num_chunks.sum()) - np.repeat(first_chunk, num_chunks)
    length_of_record = np.repeat(record_length, num_chunks)
    start, length = locate_chunks(length_of_record, number, chunk_length_bp)
    record_start = np.cumsum(record_length) - record_length
    return Chunks(num_chunks, np.repeat(record_start, num_chunks) + start, length)


def locate_chunks(
    record_length: Int64Array, chunk_number: Int64Array, chunk_length_bp: int
) -> tuple[Int64Array, Int64Array]:
    """Return where chunks lie in their records: start and length, int64 (C,) each.

    Args:
        record_length: int64 (C,), the length of the record of each chunk.
        chunk_number: int64 (C,), the chunk's number in its record, from 0.
        chunk_length_bp: The expected length.
    """
    num_chunks = _count_chunks(record_length, chunk_length_bp)
    overlap = num_chunks * chunk_length_bp - record_length
    shift = overlap // num_chunks
    num_longer_shifts = overlap - shift * (num_chunks - 1)
    total_shift = chunk_number * shift + np.minimum(chunk_number, num_longer_shifts)
    start = chunk_number * chunk_length_bp - total_shift
    return start, np.minimum(chunk_length_bp, record_length - start)


def _count_chunks(record_length: Int64Array, chunk_length_bp: int) -> Int64Array:
    return -(-record_length // chunk_length_bp)


def find_open_frames(
    letters: bytes, chunk_start: Int64Array, chunk_length: Int64Array
) -> OpenFrames:
    """Translate chunks in six frames and return the frames that have amino acids and no stop.

    Args:
        letters: The sequences that the chunks are cut from, end to end.
        chunk_start: int64 (C,), where each chunk starts in `letters`.
        chunk_length: int64 (C,).
    """
    amino_acids = _translate_everywhere(letters)
    num_codons = np.maximum((chunk_length[:, None] - _FRAME_OFFSETS) // 3, 0)
    first = _locate_frames(chunk_start, chunk_length, num_codons, len(amino_acids))
    is_open = (num_codons > 0) & (_count_stops(amino_acids, first, num_codons) == 0)
    chunk, code = np.nonzero(is_open)
    residues, protein_length = _join_frames(amino_acids, first[is_open], num_codons[is_open])
    is_kept = protein_length > 0
    return OpenFrames(
        chunk[is_kept], code[is_kept].astype(np.uint8), protein_length[is_kept], residues.tobytes()
    )


def _translate_everywhere(letters: bytes) -> UInt8Array:
    """Return the amino acid of the codon at every position and on both strands.

    Positions 3 apart become neighbours, so that every frame is one slice: first come 0, 3, 6, ...,
    then 1, 4, 7, ..., then 2, 5, 8, ...; the other strand follows in the opposite order.
    """
    num_columns = -(-len(letters) // 3)
    padded = letters + b"-" * (3 * num_columns + 2 - len(letters))
    bases = np.frombuffer(padded.translate(_BASE_CODES), np.uint8)
    codons = 16 * bases[:-2] + 4 * bases[1:-1] + bases[2:]
    by_phase = codons.reshape(num_columns, 3).T.tobytes()
    reverse = by_phase.translate(_REVERSE_CODE)[::-1]
    return np.frombuffer(by_phase.translate(_FORWARD_CODE) + reverse, np.uint8)


def _locate_frames(
    chunk_start: Int64Array, chunk_length: Int64Array, num_codons: Int64Array, num_letters: int
) -> Int64Array:
    """Return int64 (C, 6): where each frame's slice of `_translate_everywhere` starts."""
    # The lowest position of a codon of the frame, on either strand.
    lowest = chunk_start[:, None] + _FRAME_OFFSETS
    lowest[:, _NUM_FORWARD:] = (
        (chunk_start + chunk_length)[:, None]
        - _FRAME_OFFSETS[_NUM_FORWARD:]
        - 3 * num_codons[:, _NUM_FORWARD:]
    )
    first: Int64Array = lowest % 3 * (num_letters // 6) + lowest // 3
    first[:, _NUM_FORWARD:] = num_letters - (first + num_codons)[:, _NUM_FORWARD:]
    return first


def _count_stops(
    amino_acids: UInt8Array, first: Int64Array, num_codons: Int64Array
) -> npt.NDArray[np.int32]:
    """Return int32 (C, 6): the stop codons in each frame."""
    running = np.zeros(len(amino_acids) + 1, np.int32)
    np.cumsum(amino_acids == _STOP, out=running[1:])
    num_stops: npt.NDArray[np.int32] = running[first + num_codons] - running[first]
    return num_stops


def _join_frames(
    amino_acids: UInt8Array, first: Int64Array, num_codons: Int64Array
) -> tuple[UInt8Array, Int64Array]:
    """Return the amino acids of frames end to end, uint8 (P,), and the length of each protein."""
    begin = np.cumsum(num_codons) - num_codons
    residues = amino_acids[np.repeat(first - begin, num_codons) + np.arange(num_codons.sum())]
    is_residue = residues != _NOTHING
    return residues[is_residue], np.add.reduceat(is_residue, begin, dtype=np.int64)


def locate_frame_dna(
    chunk_length: Int64Array, code: UInt8Array, protein_length: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Return where the DNA of open frames lies in their chunks: start and length, int64 (F,) each.

    It starts at the frame's offset and is `3 * protein_length + 1` bases long, or ends with the
    chunk. For reverse frames this is the part that `reverse_complement` turns into it.
    """
    offset = _FRAME_OFFSETS[code]
    length = np.minimum(3 * protein_length + 1, chunk_length - offset)
    return np.where(code < _NUM_FORWARD, offset, chunk_length - offset - length), length


def is_reverse(code: UInt8Array) -> npt.NDArray[np.bool_]:
    """Return bool (F,): which frame codes are of the reverse strand."""
    return code >= _NUM_FORWARD


def reverse_complement(letters: bytes) -> bytes:
    """Return the other strand, case kept; letters other than A, C, G and T stay as they are."""
    return letters.translate(_COMPLEMENT)[::-1]

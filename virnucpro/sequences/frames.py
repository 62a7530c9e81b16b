"""Cutting records into chunks and reading chunks in six frames, many records at a time.

The rules are the original VirNucPro's, including its oddities. Chunks overlap by shifts that do not
always add up, so that the last chunk can be short. A codon with an ambiguous letter translates to
nothing. The DNA of a frame has one base more than its codons.

Shapes: R records, C chunks, F open frames, P amino acids of all open frames together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray, Int64Array, UInt8Array

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
    """The places of chunks in records that are laid end to end, in the order of the records.

    Attributes:
        num_chunks: int64 (R,), the number of chunks of each record.
        start: int64 (C,), the position of each chunk's first letter in all records.
        length: int64 (C,).
    """

    num_chunks: Int64Array
    start: Int64Array
    length: Int64Array


class OpenFrames(NamedTuple):
    """The frames without a stop codon, ordered by chunk and then by frame code.

    Attributes:
        chunk: int64 (F,), index of each frame's chunk.
        code: uint8 (F,), index into `records.FRAME_NAMES`.
        protein_length: int64 (F,), number of amino acids of each frame; never 0.
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
    """Return the starts of chunks in their records, and their lengths: int64 (C,) each.

    Args:
        record_length: int64 (C,), the length of each chunk's record.
        chunk_number: int64 (C,), each chunk's number in its record, from 0.
        chunk_length_bp: Length of a chunk.
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
    """Translate chunks in six frames, and return the frames with amino acids and without a stop.

    Args:
        letters: The sequences of the chunks' records, end to end.
        chunk_start: int64 (C,), the start of each chunk in `letters`.
        chunk_length: int64 (C,).
    """
    amino_acids = _translate_everywhere(letters)
    num_codons = np.maximum((chunk_length[:, None] - _FRAME_OFFSETS) // 3, 0)
    first = _locate_frames(chunk_start, chunk_length, num_codons, len(amino_acids))
    # The difference of two running counts is the number of stops in a frame of any length.
    num_stops = np.zeros(len(amino_acids) + 1, np.int32)
    np.cumsum(amino_acids == _STOP, out=num_stops[1:])
    is_open = (num_codons > 0) & (num_stops[first + num_codons] == num_stops[first])
    chunk, code = np.nonzero(is_open)
    first, num_codons = first[is_open], num_codons[is_open]
    begin = np.cumsum(num_codons) - num_codons
    residues = amino_acids[np.repeat(first - begin, num_codons) + np.arange(num_codons.sum())]
    is_residue = residues != _NOTHING
    protein_length = np.add.reduceat(is_residue, begin, dtype=np.int64)
    is_kept = protein_length > 0
    return OpenFrames(
        chunk[is_kept],
        code[is_kept].astype(np.uint8),
        protein_length[is_kept],
        residues[is_residue].tobytes(),
    )


def _translate_everywhere(letters: bytes) -> UInt8Array:
    """Return the amino acid of the codon at every position of both strands, frame by frame.

    Positions 3 apart become neighbours, so that every frame is one slice: first positions 0, 3, 6,
    ..., then 1, 4, 7, ..., then 2, 5, 8, .... The reverse strand follows in the opposite order.
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
    """Return the start of each frame's slice of `_translate_everywhere`: int64 (C, 6)."""
    # The lowest position of a codon of each frame, on either strand.
    lowest = chunk_start[:, None] + _FRAME_OFFSETS
    lowest[:, _NUM_FORWARD:] = (
        (chunk_start + chunk_length)[:, None]
        - _FRAME_OFFSETS[_NUM_FORWARD:]
        - 3 * num_codons[:, _NUM_FORWARD:]
    )
    first: Int64Array = lowest % 3 * (num_letters // 6) + lowest // 3
    first[:, _NUM_FORWARD:] = num_letters - (first + num_codons)[:, _NUM_FORWARD:]
    return first


def locate_frame_dna(
    chunk_length: Int64Array, code: UInt8Array, protein_length: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Return the start and the length of open frames' DNA in their chunks: int64 (F,) each.

    The DNA starts at the frame's offset and has `3 * protein_length + 1` bases, or ends with the
    chunk. For a reverse frame, these are the letters to pass to `reverse_complement`.
    """
    offset = _FRAME_OFFSETS[code]
    length = np.minimum(3 * protein_length + 1, chunk_length - offset)
    return np.where(code < _NUM_FORWARD, offset, chunk_length - offset - length), length


def is_reverse(code: UInt8Array) -> BoolArray:
    """Return which frame codes belong to the reverse strand: bool (F,)."""
    return code >= _NUM_FORWARD


def reverse_complement(letters: bytes) -> bytes:
    """Return the other strand in the same case; only A, C, G and T are complemented."""
    return letters.translate(_COMPLEMENT)[::-1]

"""Cutting records into chunks and reading chunks in six frames, many records at a time.

The rules of chunks and open frames are the original VirNucPro's, including its oddities. Chunks
overlap by shifts that do not always add up, so that the last chunk can be short. A codon with an
ambiguous letter translates to nothing. The DNA of a frame has one base more than its codons.

A stretch is a run of codons of a frame without a stop codon and without an ambiguous codon.

Shapes: R records, C chunks, F open frames or stretches, P amino acids of all of them together.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from virnucpro.backend.arrays import BoolArray, Int32Array, Int64Array, UInt8Array, number_spans
from virnucpro.config.frame_rule import STANDARD_CODE, FrameRule

_STOP = ord("*")
_NOTHING = 0

# A codon's number is 16 a + 4 b + c in wrapping 8-bit arithmetic. With 84 for an ambiguous letter
# (16, 4 and 1 times 84 leave 64, 80 and 84) every codon that holds one gets a number above 63.
_AMBIGUOUS = 84


def code_bases(other: int) -> bytes:
    """Return a table for `bytes.translate`: 0 to 3 for A, C, G and T, and `other` for the rest."""
    letters = map(chr, range(256))
    return bytes("ACGT".index(x.upper()) if x in "ACGTacgt" else other for x in letters)


_BASE_CODES = code_bases(_AMBIGUOUS)
_UNTRANSLATED = bytes([_NOTHING]) * (256 - 64)
_COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")

_FRAME_OFFSETS = np.array([0, 1, 2, 0, 1, 2])
_ALL_FRAMES = np.arange(len(_FRAME_OFFSETS), dtype=np.uint8)
_NUM_FORWARD = 3

_PERIODS_BP = range(7, 13)
_MIN_REPETITIVE_BP = 48


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


class Rows(NamedTuple):
    """What a frame rule takes of chunks, ordered by chunk.

    The open frames of a chunk are ordered by frame code. Its longest stretch comes first.

    Attributes:
        chunk: int64 (F,), index of each row's chunk.
        code: uint8 (F,), the frame: an index into `records.FRAME_NAMES`.
        protein_length: int64 (F,), number of amino acids of each row; never 0.
        proteins: The amino acids of all rows end to end, P bytes.
        first_codon: int32 (F,), the place of each stretch's first codon in its frame, from 0; None
            for open frames.
    """

    chunk: Int64Array
    code: UInt8Array
    protein_length: Int64Array
    proteins: bytes
    first_codon: Int32Array | None = None


def cut_records(
    record_length: Int64Array,
    chunk_length_bp: int,
    min_length_bp: int = 0,
    reads_per_record: int = 1,
) -> Chunks:
    """Return the chunks of records of these lengths; empty and too short records have none.

    If records are pairs, the lengths are those of reads, and a pair's length is their sum.
    """
    # The minimum applies to the pair: a short mate still counts beside a long one.
    total_length = record_length.reshape(-1, reads_per_record).sum(axis=1)
    is_cut = np.repeat(total_length >= min_length_bp, reads_per_record)
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
    # The chunks together are longer than the record by this much, which is spread over the shifts.
    # The remainder makes the first shifts longer by one: this is the rule of the original.
    overlap = num_chunks * chunk_length_bp - record_length
    shift = overlap // num_chunks
    num_longer_shifts = overlap - shift * (num_chunks - 1)
    total_shift = chunk_number * shift + np.minimum(chunk_number, num_longer_shifts)
    start = chunk_number * chunk_length_bp - total_shift
    return start, np.minimum(chunk_length_bp, record_length - start)


def _count_chunks(record_length: Int64Array, chunk_length_bp: int) -> Int64Array:
    # Minus twice rounds up: the rest of a record is a chunk, too.
    return -(-record_length // chunk_length_bp)


def find_rows(
    letters: bytes, chunk_start: Int64Array, chunk_length: Int64Array, rule: FrameRule
) -> Rows:
    """Return what the rule takes of each chunk; see `find_open_frames` and `find_stretches`.

    Stretches of repetitive chunks are left out; see `find_repetitive`.
    """
    if rule.kind == "open":
        return find_open_frames(letters, chunk_start, chunk_length, rule.genetic_code)
    is_repetitive = find_repetitive(letters, chunk_start, chunk_length)
    # A chunk of no length has no stretch.
    return find_stretches(letters, chunk_start, np.where(is_repetitive, 0, chunk_length), rule)


def find_repetitive(letters: bytes, chunk_start: Int64Array, chunk_length: Int64Array) -> BoolArray:
    """Return which chunks consist of short repeats, such as GGGG or CACA: bool (C,).

    A chunk is repetitive if more than three of four bases are the same as those P places further,
    for one P from 7 to 12. A repeat of 1 to 12 bases is one of these P bases, too. A chunk of less
    than 48 bases is too short to tell. Repeats have long stretches, but they are no genes, so a
    classifier cannot judge them.

    Args:
        letters: The sequences of the chunks' records, end to end.
        chunk_start: int64 (C,), the start of each chunk in `letters`.
        chunk_length: int64 (C,).
    """
    # Behind the last base too, so that there are as many comparisons as bases for each period.
    padded = np.frombuffer((letters + b"-" * max(_PERIODS_BP)).translate(_BASE_CODES), np.uint8)
    bases = padded[: len(letters)]
    is_known = bases != _AMBIGUOUS
    is_repetitive = np.zeros(len(chunk_start), np.bool_)
    num_before = np.zeros(len(bases) + 1, np.int32)
    for period in _PERIODS_BP:
        is_equal = (bases == padded[period : period + len(bases)]) & is_known
        np.cumsum(is_equal, out=num_before[1:])
        num_pairs = np.maximum(chunk_length - period, 0)
        num_equal = num_before[chunk_start + num_pairs] - num_before[chunk_start]
        is_repetitive |= 4 * num_equal > 3 * num_pairs
    return is_repetitive & (chunk_length >= _MIN_REPETITIVE_BP)


def find_open_frames(
    letters: bytes,
    chunk_start: Int64Array,
    chunk_length: Int64Array,
    genetic_code: int = STANDARD_CODE,
) -> Rows:
    """Translate chunks in six frames, and return the frames with amino acids and without a stop.

    Args:
        letters: The sequences of the chunks' records, end to end.
        chunk_start: int64 (C,), the start of each chunk in `letters`.
        chunk_length: int64 (C,).
        genetic_code: NCBI's number of the genetic code.
    """
    amino_acids = _translate_everywhere(letters, genetic_code)
    num_codons = count_codons(chunk_length[:, None], _ALL_FRAMES)
    first = _locate_frames(chunk_start, chunk_length, num_codons, len(amino_acids))
    # A frame is open if the next stop lies behind its end. The last entry is behind every frame.
    stops = np.append(np.flatnonzero(amino_acids == _STOP), len(amino_acids))
    is_open = (num_codons > 0) & (stops[np.searchsorted(stops, first)] >= first + num_codons)
    chunk, code = np.nonzero(is_open)
    first, num_codons = first[is_open], num_codons[is_open]
    begin = np.cumsum(num_codons) - num_codons
    residues = amino_acids[number_spans(first, num_codons)]
    # The original leaves out codons with ambiguous bases, and joins the rest.
    is_residue = residues != _NOTHING
    protein_length = np.add.reduceat(is_residue, begin, dtype=np.int64)
    is_kept = protein_length > 0
    return Rows(
        chunk[is_kept],
        code[is_kept].astype(np.uint8),
        protein_length[is_kept],
        residues[is_residue].tobytes(),
    )


def find_stretches(
    letters: bytes, chunk_start: Int64Array, chunk_length: Int64Array, rule: FrameRule
) -> Rows:
    """Return the longest stretches of each chunk, as many and as long as the rule says.

    Stretches of equal length are ordered by frame code, and then by their place in the frame.

    Args:
        letters: The sequences of the chunks' records, end to end.
        chunk_start: int64 (C,), the start of each chunk in `letters`.
        chunk_length: int64 (C,).
        rule: A rule of the kind `stretches`.
    """
    amino_acids = _translate_everywhere(letters, rule.genetic_code)
    num_codons = count_codons(chunk_length[:, None], _ALL_FRAMES)
    # Flat, because each frame of each chunk is searched by itself.
    first = _locate_frames(chunk_start, chunk_length, num_codons, len(amino_acids)).ravel()
    num_codons = num_codons.ravel()
    # B breaks in a frame leave B + 1 gaps between them and the frame's ends; most are too short.
    breaks = np.flatnonzero(amino_acids <= _STOP)
    first_gap = np.searchsorted(breaks, first)
    num_gaps = np.searchsorted(breaks, first + num_codons) - first_gap + 1
    frame = np.repeat(np.arange(len(first)), num_gaps)
    gap = number_spans(first_gap, num_gaps)
    edges = np.concatenate([[-1], breaks, [len(amino_acids)]])
    # A gap may begin before its frame or end behind it, because all frames lie end to end.
    begin = np.maximum(edges[gap] + 1, first[frame])
    length = np.minimum(edges[gap + 1], (first + num_codons)[frame]) - begin
    # Most gaps go here, so sorting has few stretches left.
    is_long = length >= rule.min_codons
    frame, begin, length = frame[is_long], begin[is_long], length[is_long]
    chunk = frame // len(_ALL_FRAMES)
    # Stable: the frames and the places in them ascend, and equal lengths keep this order.
    order = np.lexsort((-length, chunk))
    sorted_chunk = chunk[order]
    # The place of a stretch within its chunk: 0 is the longest one.
    rank = np.arange(len(order)) - np.searchsorted(sorted_chunk, sorted_chunk)
    taken = order[rank < rule.max_stretches]
    frame, begin, length = frame[taken], begin[taken], length[taken]
    return Rows(
        chunk[taken],
        (frame % len(_ALL_FRAMES)).astype(np.uint8),
        length,
        amino_acids[number_spans(begin, length)].tobytes(),
        (begin - first[frame]).astype(np.int32),
    )


def count_codons(chunk_length: Int64Array, code: UInt8Array) -> Int64Array:
    """Return the number of codons in these frames of chunks: int64 (F,).

    Args:
        chunk_length: int64 (F,), the length of each frame's chunk.
        code: uint8 (F,), the frame: an index into `records.FRAME_NAMES`.
    """
    num_codons: Int64Array = np.maximum((chunk_length - _FRAME_OFFSETS[code]) // 3, 0)
    return num_codons


@cache
def translate_codons(genetic_code: int) -> str:
    """Return the amino acids of the 64 codons of A, C, G and T, in this order; `*` for a stop."""
    from Bio.Data import CodonTable

    table = CodonTable.unambiguous_dna_by_id[genetic_code]
    # A few codes have codons that are a stop in some places only: they count as amino acids.
    return "".join(
        table.forward_table.get(f"{a}{b}{c}", "*") for a in "ACGT" for b in "ACGT" for c in "ACGT"
    )


@cache
def _make_codes(genetic_code: int) -> tuple[bytes, bytes]:
    """Return the amino acids of the codons' 256 numbers on the strand, and on the other strand."""
    amino_acids = translate_codons(genetic_code)
    # The number of a codon has 2 bits for a base, and 3 minus the bits is the complement.
    reverse = "".join(
        amino_acids[16 * (3 - codon % 4) + 4 * (3 - codon // 4 % 4) + (3 - codon // 16)]
        for codon in range(64)
    )
    forward_code, reverse_code = (
        letters.encode("ascii") + _UNTRANSLATED for letters in (amino_acids, reverse)
    )
    return forward_code, reverse_code


def _translate_everywhere(letters: bytes, genetic_code: int) -> UInt8Array:
    """Return the amino acid of the codon at every position of both strands, frame by frame.

    Positions 3 apart become neighbours, so that every frame is one slice: first positions 0, 3, 6,
    ..., then 1, 4, 7, ..., then 2, 5, 8, .... The reverse strand follows in the opposite order.
    """
    forward_code, reverse_code = _make_codes(genetic_code)
    num_columns = -(-len(letters) // 3)
    # Every position gets a codon, also the last two, so that all frames have one layout.
    padded = letters + b"-" * (3 * num_columns + 2 - len(letters))
    bases = np.frombuffer(padded.translate(_BASE_CODES), np.uint8)
    # Three bases of 2 bits each are a number from 0 to 63. Any other letter makes a larger number.
    codons = 16 * bases[:-2] + 4 * bases[1:-1] + bases[2:]
    by_phase = codons.reshape(num_columns, 3).T.tobytes()
    # Read backwards, the same table holds the codons of the other strand.
    reverse = by_phase.translate(reverse_code)[::-1]
    return np.frombuffer(by_phase.translate(forward_code) + reverse, np.uint8)


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
    # Each half of the table has a third for each phase: the remainder of a position by 3.
    first: Int64Array = lowest % 3 * (num_letters // 6) + lowest // 3
    # The second half of the table is read from behind, so a frame starts where it ends on the
    # strand.
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
    # The original takes one base more than the codons have. The DNA that models see must be the
    # same.
    length = np.minimum(3 * protein_length + 1, chunk_length - offset)
    return np.where(code < _NUM_FORWARD, offset, chunk_length - offset - length), length


def is_reverse(code: UInt8Array) -> BoolArray:
    """Return which frame codes belong to the reverse strand: bool (F,)."""
    return code >= _NUM_FORWARD


def reverse_complement(letters: bytes) -> bytes:
    """Return the other strand in the same case; only A, C, G and T are complemented."""
    return letters.translate(_COMPLEMENT)[::-1]

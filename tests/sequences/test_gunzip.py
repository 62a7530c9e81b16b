"""What follows the compressed data of a gzip file, and gzip in many members."""

from __future__ import annotations

import gzip
import io
import random
import zlib

import pytest

from virnucpro.sequences.gunzip import Gunzip

DATA = bytes(random.Random(0).choices(b"ACGT\n", k=300_000))
# The empty block at the end of every file of bgzip, from the SAM specification.
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def make_bgzip(data: bytes) -> bytes:
    blocks = []
    for start in range(0, len(data), 60_000):
        block = data[start : start + 60_000]
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(block) + packer.flush()
        size = (len(body) + 25).to_bytes(2, "little")
        header = bytes.fromhex("1f8b08040000000000ff060042430200") + size
        tail = zlib.crc32(block).to_bytes(4, "little") + len(block).to_bytes(4, "little")
        blocks.append(header + body + tail)
    return b"".join(blocks) + BGZIP_END


def read(packed: bytes, size: int = 1 << 16) -> tuple[bytes, Gunzip]:
    gunzip = Gunzip(io.BufferedReader(io.BytesIO(packed)))
    return b"".join(iter(lambda: gunzip.read(size), b"")), gunzip


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_members_are_joined(size: int) -> None:
    some = DATA[:20_000]
    packed = gzip.compress(some[:9_000]) + gzip.compress(b"") + bytes(70_000)
    packed += gzip.compress(some[9_000:])
    data, gunzip = read(packed, size)
    assert data == some
    assert (gunzip.num_trailing, gunzip.lacks_end) == (0, False)


@pytest.mark.parametrize("num_zeros", [0, 1, 100_000])
@pytest.mark.parametrize("trailing", [b"", b"x", b"\x1f", b"garbage" * 20_000])
def test_what_follows_is_counted_but_for_zeros(num_zeros: int, trailing: bytes) -> None:
    data, gunzip = read(gzip.compress(DATA) + bytes(num_zeros) + trailing)
    assert data == DATA
    assert gunzip.num_trailing == len(trailing)


def test_the_end_of_a_bgzip_file() -> None:
    packed = make_bgzip(DATA)
    data, gunzip = read(packed)
    assert (data, gunzip.lacks_end) == (DATA, False)
    data, gunzip = read(packed[: -len(BGZIP_END)])
    assert (data, gunzip.lacks_end) == (DATA, True)


def test_a_cut_anywhere_in_a_member_is_an_error() -> None:
    packed = gzip.compress(DATA[:1000])
    for stop in range(2, len(packed)):
        with pytest.raises(EOFError, match="end in the middle"):
            read(packed[:stop])
    for stop in range(2, len(packed)):
        with pytest.raises(EOFError, match="end in the middle"):
            read(packed + packed[:stop])


def test_a_changed_byte_of_the_data_is_an_error() -> None:
    packed = bytearray(gzip.compress(DATA))
    packed[len(packed) // 2] ^= 1
    with pytest.raises(Exception, match=r"."):  # zlib and isal have errors of their own
        read(bytes(packed))


def test_one_long_run_takes_no_memory() -> None:
    """A megabyte of zeros for each kilobyte: what does not fit into the buffer waits packed."""
    gunzip = Gunzip(io.BufferedReader(io.BytesIO(gzip.compress(bytes(1 << 25)))))
    assert len(gunzip.read(1000)) == 1000

"""Decompresses gzip, and tells what follows the compressed data."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

# Three times as fast. xopen installs it where it exists.
try:
    from isal import isal_zlib as zlib
except ImportError:
    import zlib  # type: ignore[no-redef]

MAGIC = b"\x1f\x8b"

_READ_BYTES = 1 << 16
# zlib's number for data with the header and the CRC of gzip.
_GZIP_HEADER = 31


class Gunzip(io.RawIOBase):
    """The decompressed bytes of a gzip file, which is one member or several.

    Attributes:
        num_trailing: Bytes after the last member that are no gzip, without padding of zeros.
        lacks_end: Whether blocks of bgzip are not followed by the empty block that ends them.

    Raises:
        EOFError: During reading: the file ends inside a member.
        zlib.error: During reading: a member is damaged.
    """

    def __init__(self, source: BinaryIO) -> None:
        self.num_trailing = 0
        self.lacks_end = False
        self._source = source
        self._pending = b""
        self._member: Any = None
        self._num_members = 0
        self._is_bgzip = False
        self._is_empty_member = True

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with decompressed bytes as far as some are at hand; 0 at the end."""
        while self._member is not None or self._begin_member():
            # The length is a limit: a small file may unpack to more than the memory holds.
            data = self._member.decompress(self._pending, len(buffer))
            self._is_empty_member &= not data
            if self._member.eof:
                # Another member may follow: bgzip and `cat a.gz b.gz` make files of many members.
                self._pending, self._member = self._member.unused_data, None
            else:
                # What did not fit into the limit, and must be given again.
                self._pending = self._member.unconsumed_tail
                if not data and not self._pending and not self._read_on():
                    raise EOFError("the compressed data end in the middle")
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _begin_member(self) -> bool:
        """Prepare the next member; return whether there is one."""
        # Tapes and some programs fill the last block with zeros.
        self._pending = self._pending.lstrip(b"\0")
        while len(self._pending) < len(MAGIC) and self._read_on():
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending.startswith(MAGIC):
            self._finish()
            return False
        if self._num_members == 0:
            # bgzip names itself in the extra field of each header.
            self._is_bgzip = self._pending[3:4] == b"\4" and self._pending[12:14] == b"BC"
        self._num_members += 1
        self._is_empty_member = True
        # A new object for each member: the old one takes no bytes after its end.
        self._member = zlib.decompressobj(_GZIP_HEADER)
        return True

    def _finish(self) -> None:
        """Count what is left of the file."""
        # bgzip ends with an empty block: a file without it was perhaps cut off between blocks.
        self.lacks_end = self._is_bgzip and not self._is_empty_member
        self.num_trailing = len(self._pending)
        while chunk := self._source.read(_READ_BYTES):
            self.num_trailing += len(chunk)
        self._pending = b""

    def _read_on(self) -> bool:
        more = self._source.read(_READ_BYTES)
        self._pending += more
        return bool(more)

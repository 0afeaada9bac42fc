"""Compressed answers made whole again, piece by piece and never past a limit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Protocol, final

PIECE_BYTES_MAX = 256 * 1024
GZIP_WINDOW = 16 + zlib.MAX_WBITS
ZLIB_METHOD = 8  # the low half of a zlib stream's first byte (RFC 1950, 2.2)
ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})


class NotInflated(Exception):
    """The bytes are not what their encoding says, or become too many."""


class InflatedTooFar(NotInflated):
    """The bytes become more than may be held here."""


def is_encoded(content_encoding: str) -> bool:
    """Return whether a body must be decoded before it can be read."""
    return content_encoding.strip().lower() not in {"", "identity"}


class Inflater(Protocol):
    """What `zlib.decompressobj` makes, which names no type of it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int) -> bytes: ...


@final
class Inflation:
    """One body on its way; of `inflated_bytes_max` at most."""

    def __init__(self, content_encoding: str, inflated_bytes_max: int) -> None:
        self._encoding = content_encoding.strip().lower()
        if self._encoding not in ENCODINGS:
            raise NotInflated("the answer's content encoding is unknown")
        self._inflater: Inflater | None = None
        self._left_bytes = inflated_bytes_max

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give what the bytes hold, in pieces of 256 KiB at most; NotInflated when that can't be."""
        if not data:
            return
        inflater = self._inflater
        if inflater is None:
            inflater = self._inflater = zlib.decompressobj(self._window(data[0]))
        size = 0
        while not inflater.eof and (data or size == PIECE_BYTES_MAX):  # a full piece may have more behind it
            try:
                piece = inflater.decompress(data, PIECE_BYTES_MAX)
            except zlib.error:
                raise NotInflated("the answer is not compressed as it says") from None
            data, size = inflater.unconsumed_tail, len(piece)
            self._left_bytes -= size
            if self._left_bytes < 0:
                raise InflatedTooFar("the answer is too large")
            if piece:
                yield piece
        if inflater.unused_data or data:
            raise NotInflated("bytes follow the compressed answer")

    def end(self) -> None:
        """Note that the body is complete; NotInflated where its compressed form is not."""
        if self._inflater is not None and not self._inflater.eof:
            raise NotInflated("the compressed answer ended early")

    def _window(self, first: int) -> int:
        """Return how to begin: `deflate` is a zlib stream by its RFC, and a bare one by old habit."""
        if self._encoding != "deflate":
            return GZIP_WINDOW
        return zlib.MAX_WBITS if first & 0x0F == ZLIB_METHOD else -zlib.MAX_WBITS

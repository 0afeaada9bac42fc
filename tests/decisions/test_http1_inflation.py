from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.providers.http1.inflation import PIECE_BYTES_MAX, Inflation, NotInflated, is_encoded

TEXT = b"some words, " * 50


def bare(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


Compress = Callable[[bytes], bytes]
COMPRESSED: list[tuple[str, Compress]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("Deflate", zlib.compress),
    ("deflate", bare),
]


def inflated(encoding: str, segments: list[bytes], bytes_max: int = 10**9) -> bytes:
    inflation = Inflation(encoding, bytes_max)
    body = b"".join([piece for segment in segments for piece in inflation.feed(segment)])
    inflation.end()
    return body


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
@given(data=st.binary(max_size=300), step=st.integers(1, 50))
def test_a_body_is_whole_again_wherever_it_is_split(encoding: str, compress: Compress, data: bytes, step: int) -> None:
    wire = compress(data)
    assert inflated(encoding, [wire[at : at + step] for at in range(0, len(wire), step)]) == data


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
def test_a_compressed_body_that_ends_early_is_not_one(encoding: str, compress: Compress) -> None:
    with pytest.raises(NotInflated):
        inflated(encoding, [compress(TEXT)[:-1]])


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
def test_bytes_behind_a_compressed_body_are_refused(encoding: str, compress: Compress) -> None:
    with pytest.raises(NotInflated):
        inflated(encoding, [compress(TEXT), b"x"])
    with pytest.raises(NotInflated):
        inflated(encoding, [compress(TEXT) + b"x"])


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "chunked"])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(NotInflated):
        Inflation(encoding, 1)


def test_what_is_not_compressed_is_refused() -> None:
    with pytest.raises(NotInflated):
        inflated("gzip", [b"hello"])


def test_a_small_body_that_becomes_a_huge_one_is_stopped_at_the_limit() -> None:
    inflation, sizes = Inflation("gzip", 3 * PIECE_BYTES_MAX), []
    bomb = gzip.compress(bytes(40 * 1024 * 1024))
    with pytest.raises(NotInflated):
        sizes += [len(piece) for piece in inflation.feed(bomb)]
    assert all(size <= PIECE_BYTES_MAX for size in sizes)
    assert inflated("gzip", [bomb]) == bytes(40 * 1024 * 1024)


def test_a_body_of_nothing_needs_no_compressed_form() -> None:
    assert inflated("gzip", []) == b""


@pytest.mark.parametrize(("encoding", "encoded"), [("", False), (" Identity ", False), ("gzip", True), ("br", True)])
def test_a_body_without_encoding_is_read_as_it_is(encoding: str, *, encoded: bool) -> None:
    assert is_encoded(encoding) is encoded

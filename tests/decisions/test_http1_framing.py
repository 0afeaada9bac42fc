from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.providers.http1.framing import HEAD_BYTES_MAX, HEADERS_MAX, Malformed, Reading

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH_3 = OK + b"content-length: 3\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    wire: bytes
    body: bytes = b""
    status: int = 200
    reusable: bool = True
    until_close: bool = False


CASES = [
    Case("a length", LENGTH_3 + b"\r\nabc", b"abc"),
    Case("a length of none", OK + b"content-length: 0\r\n\r\n"),
    Case("a length and close", LENGTH_3 + b"connection: close\r\n\r\nabc", b"abc", reusable=False),
    Case("chunks", CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
    Case("chunks with extensions", CHUNKED + b'3;a="b";c\r\nabc\r\n0;d\r\n\r\n', b"abc"),
    Case("chunks with trailers",
         CHUNKED + b"3\r\nabc\r\n0\r\nx-sum: 1\r\nconnection: close\r\n\r\n", b"abc", reusable=False),
    Case("a coding in capitals", OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"a"),
    Case("until it closes", OK + b"\r\nabc", b"abc", reusable=False, until_close=True),
    Case("nothing until it closes", OK + b"\r\n", reusable=False, until_close=True),
    Case("HTTP/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc", b"abc", reusable=False),
    Case("HTTP/1.0 until it closes", b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc", reusable=False, until_close=True),
    Case("HTTP/1.0 kept", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc", b"abc"),
    Case("204", b"HTTP/1.1 204 No Content\r\n\r\n", status=204),
    Case("204 that names a length", b"HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\n", status=204),
    Case("304", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", status=304),
    Case("interim answers",
         b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\na: b\r\n\r\n" + LENGTH_3 + b"\r\nabc", b"abc"),
    Case("no reason", b"HTTP/1.1 429\r\ncontent-length: 3\r\n\r\nabc", b"abc", status=429),
]  # fmt: skip


def read(reading: Reading, segments: list[bytes], *, until_close: bool) -> bytes:
    body = b"".join([reading.feed(segment) for segment in segments])
    if until_close:
        assert not reading.complete
        reading.end()
    return body


def check(case: Case, segments: list[bytes]) -> None:
    reading = Reading()
    assert read(reading, segments, until_close=case.until_close) == case.body
    assert (reading.complete, reading.status, reading.reusable) == (True, case.status, case.reusable)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_answer_is_the_same_wherever_its_bytes_are_split(case: Case) -> None:
    check(case, [case.wire])
    check(case, [case.wire[at : at + 1] for at in range(len(case.wire))])
    for at in range(1, len(case.wire)):
        check(case, [case.wire[:at], case.wire[at:]])


@given(st.sampled_from(CASES), st.lists(st.integers(1, 200), max_size=12))
def test_any_number_of_splits_gives_the_same_answer(case: Case, cuts: list[int]) -> None:
    places = [0, *sorted({cut for cut in cuts if cut < len(case.wire)}), len(case.wire)]
    check(case, [case.wire[start:end] for start, end in pairwise(places)])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 30))
def test_chunks_joined_are_what_was_sent(parts: list[bytes], step: int) -> None:
    wire = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    reading = Reading()
    segments = [wire[at : at + step] for at in range(0, len(wire), step)]
    assert read(reading, segments, until_close=False) == b"".join(parts)
    assert reading.reusable


@pytest.mark.parametrize("case", [case for case in CASES if not case.until_close], ids=lambda case: case.name)
def test_an_answer_that_ends_early_is_never_complete(case: Case) -> None:
    for at in range(len(case.wire)):
        reading = Reading()
        reading.feed(case.wire[:at])
        assert not reading.complete
        with pytest.raises(Malformed):
            reading.end()


MALFORMED = [
    ("another protocol", b"SSH-2.0-OpenSSH_9.9\r\n"),
    ("a bare line feed", b"HTTP/1.1 200 OK\ncontent-length: 1\n\na"),
    ("two lengths", LENGTH_3 + b"content-length: 3\r\n\r\nabc"),
    ("two lengths in one", OK + b"content-length: 3, 3\r\n\r\nabc"),
    ("a negative length", OK + b"content-length: -3\r\n\r\nabc"),
    ("a signed length", OK + b"content-length: +3\r\n\r\nabc"),
    ("an empty length", OK + b"content-length:\r\n\r\nabc"),
    ("a length past all numbers", OK + b"content-length: 99999999999999999999999\r\n\r\nabc"),
    ("a length beside chunks", LENGTH_3 + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("an unknown coding", OK + b"transfer-encoding: gzip\r\n\r\nabc"),
    ("a coding below chunks", OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("a chunk size that is none", CHUNKED + b"zz\r\nabc"),
    ("a chunk size past all numbers", CHUNKED + b"fffffffffffffffff\r\nabc"),
    ("a chunk without its end", CHUNKED + b"3\r\nabcd"),
    ("a length in a trailer", CHUNKED + b"0\r\ncontent-length: 9\r\n\r\n"),
    ("a folded header", OK + b"a: b\r\n c\r\n\r\n"),
    ("a space before the colon", OK + b"a : b\r\n\r\n"),
    ("a control character", OK + b"a: b\x00c\r\n\r\n"),
    ("another protocol by 101", b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
    ("101 by itself", b"HTTP/1.1 101 Switching\r\n\r\n"),
    ("a status of nobody", b"HTTP/1.1 099 What\r\ncontent-length: 0\r\n\r\n"),
    ("too many headers", OK + b"a: b\r\n" * (HEADERS_MAX + 1) + b"\r\n"),
    ("too many interim headers", (b"HTTP/1.1 103 Hints\r\n" + b"a: b\r\n" * 20 + b"\r\n") * 6),
    ("a large head", OK + b"a: " + b"b" * HEAD_BYTES_MAX + b"\r\ncontent-length: 0\r\n\r\n"),
    ("a large name", OK + b"a" * (HEAD_BYTES_MAX + 1)),
    ("interim answers for ever", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
]


@pytest.mark.parametrize("wire", [wire for _, wire in MALFORMED], ids=[name for name, _ in MALFORMED])
@pytest.mark.parametrize("step", [3, 1000, 10**9])
def test_what_cannot_be_trusted_is_malformed(wire: bytes, step: int) -> None:
    reading = Reading()
    with pytest.raises(Malformed):
        read(reading, [wire[at : at + step] for at in range(0, len(wire), step)], until_close=False)
    assert not reading.complete


@pytest.mark.parametrize("endless", [b"0\r\n" + b"a: b\r\n", b"0\r\na: " + b"b" * 1000, b"1;" + b"x" * 1000])
def test_bytes_that_bring_no_body_along_have_an_end(endless: bytes) -> None:
    reading = Reading()
    reading.feed(CHUNKED + endless)
    with pytest.raises(Malformed, match="no body"):
        read(reading, [endless[-6:]] * HEAD_BYTES_MAX, until_close=False)


@pytest.mark.parametrize("after", [b"x", LENGTH_3 + b"\r\nabc", b"HTTP", b"\x00"])
def test_a_connection_with_bytes_after_the_answer_is_not_used_again(after: bytes) -> None:
    reading = Reading()
    assert reading.feed(LENGTH_3 + b"\r\nabc" + after) == b"abc"
    assert (reading.complete, reading.reusable, reading.status) == (True, False, 200)
    with pytest.raises(Malformed):
        reading.feed(b"x")


def test_headers_are_found_by_their_small_names_and_repeated_ones_are_joined() -> None:
    reading = Reading()
    reading.feed(b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + LENGTH_3 + b"X-A: 1\r\nx-a: 2\r\n\r\n")
    assert reading.headers == {b"content-length": b"3", b"x-a": b"1, 2"}


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(b"timeout=5, max=100", 5), (b"max=3,Timeout = 2", 2), (b"timeout=x", None), (b"max=1", None), (b"", None)],
)
def test_a_peer_may_say_for_how_long_it_keeps_a_connection(said: bytes, seconds: int | None) -> None:
    reading = Reading()
    reading.feed(LENGTH_3 + b"keep-alive: " + said + b"\r\n\r\n")
    assert reading.keep_seconds == seconds

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc import sse

EVENTS = [b"data: one", b": a comment", b"event: x\ndata: two\ndata: lines", b"data: [DONE]"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", range(1, 12))
def test_events_are_the_same_however_the_bytes_arrive(end: bytes, size: int) -> None:
    stream = b"".join(event.replace(b"\n", end) + end + end for event in EVENTS) + b"data: end" + end
    splitter = sse.Splitter()
    found: list[bytes] = []
    for at in range(0, len(stream), size):
        found += splitter.feed(stream[at : at + size])
    assert b"".join(found) + splitter.rest == stream
    data = [text for event in found if (text := sse.data_of(event))]
    assert data == [b"one", b"two\nlines", b"[DONE]"]


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_nothing_is_lost_or_added(pieces: list[bytes]) -> None:
    splitter = sse.Splitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    assert b"".join(events) + splitter.rest == b"".join(pieces)


def test_an_event_without_end_is_refused() -> None:
    splitter = sse.Splitter()
    splitter.feed(b"x" * sse.EVENT_BYTES_MAX)
    with pytest.raises(sse.OversizedEvent):
        splitter.feed(b"x")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_whole_events_are_cut_whatever_ends_their_lines(end: bytes) -> None:
    stream = b"".join(event.replace(b"\n", end) + end + end for event in EVENTS)
    assert [sse.data_of(event) for event in sse.events_of(stream)] == [b"one", b"", b"two\nlines", b"[DONE]"]

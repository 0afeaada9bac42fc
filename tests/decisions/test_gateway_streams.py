from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.transcript import Transcript, Verdict

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


def chunk(**fields: object) -> bytes:
    return sse.event(json.dumps({"choices": [], **fields}).encode())


def said(text: str) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def test_the_usage_chunk_is_kept_and_the_last_figures_count() -> None:
    transcript = Transcript()
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    assert transcript.take(said("hi")) is Verdict.PASS
    assert transcript.take(chunk(usage=usage)) is Verdict.KEEP
    assert transcript.take(chunk(usage={**usage, "completion_tokens": 2})) is Verdict.KEEP
    assert transcript.take(sse.DONE) is Verdict.DONE
    assert transcript.usage is not None
    assert (transcript.usage.input_tokens, transcript.usage.output_tokens) == (5, 2)
    assert transcript.complete


@pytest.mark.parametrize("event", [sse.event(b'{"error":{"message":"x"}}'), sse.event(b"{"), sse.event(b"[1]")])
def test_what_is_no_chunk_ends_the_stream(event: bytes) -> None:
    assert Transcript().take(event) is Verdict.FAILED


def test_a_stream_is_complete_with_a_finish_reason_or_done_and_not_before() -> None:
    transcript = Transcript()
    transcript.take(said("hi"))
    assert not transcript.complete
    transcript.take(chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    assert transcript.complete


def test_output_is_counted_by_events_or_by_bytes_whichever_is_more() -> None:
    transcript = Transcript()
    for text in ("a", "b", "c"):
        transcript.take(said(text))
    assert transcript.counted_tokens == 3
    transcript.take(said("x" * 100))
    assert transcript.counted_tokens == 26
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "12345678"}}
    transcript.take(chunk(choices=[{"index": 0, "delta": {"tool_calls": [call]}}]))
    assert transcript.counted_tokens == 28

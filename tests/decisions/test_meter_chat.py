from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.meters.chat import ChatMeter
from gateway_svc.usage import TokenUsage


def chunk(**fields: Any) -> bytes:
    return sse.event(orjson.dumps({"choices": [], **fields}))


def choice(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def said(text: str) -> bytes:
    return chunk(choices=[choice(content=text)])


HELLO = said('a "choices": of [DONE] "error": "usage":{ "finish_reason":"stop"')
NULLS = chunk(choices=[choice(content="a")], usage=None, error=None)
CALL = chunk(choices=[choice(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "12345678"}}])])
FINISH = chunk(choices=[choice("stop")])
EARLY = chunk(choices=[choice(content="b")], usage={"prompt_tokens": 5, "completion_tokens": 0})
USAGE = chunk(usage={"prompt_tokens": 5, "completion_tokens": 2})
ERROR = sse.event(b'{"error":{"message":"x"}}')
COMMENT = b": hello\n\n"


def fed(data: bytes, cuts: list[int] | None = None) -> tuple[ChatMeter, bytes]:
    meter = ChatMeter()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    passed = b"".join(meter.feed(data[start:end]) for start, end in pairwise(edges))
    return meter, passed + meter.end()


def verdict(meter: ChatMeter) -> tuple[object, ...]:
    return (meter.kept, meter.failure, meter.over, meter.complete, meter.usage, meter.counted_tokens)


def test_the_usage_chunk_is_kept_and_the_last_figures_count() -> None:
    first = chunk(usage={"prompt_tokens": 5, "completion_tokens": 1})
    meter, passed = fed(HELLO + FINISH + first + USAGE + sse.DONE)
    assert passed == HELLO + FINISH
    assert meter.kept == [USAGE]
    assert meter.usage == TokenUsage(input_tokens=5, output_tokens=2)
    assert (meter.over, meter.complete) == (True, True)


@pytest.mark.parametrize(
    "event",
    [ERROR, *(sse.event(data) for data in (b"{", b"[1]", b'{"message":"busy"}', b'{"choices":null}', b'"choices"'))],
)
@pytest.mark.parametrize("before", [b"", HELLO])
def test_what_is_no_chunk_ends_the_stream(before: bytes, event: bytes) -> None:
    meter, passed = fed(before + event + HELLO)
    assert (passed, meter.failure, meter.over) == (before, sse.data_of(event), True)


def test_an_error_that_is_null_is_none() -> None:
    meter, passed = fed(NULLS)
    assert (passed, meter.failure) == (NULLS, b"")


@pytest.mark.parametrize(
    ("last", "complete"),
    [(b"", False), (FINISH, True), (sse.DONE, True), (USAGE, False), (FINISH + sse.DONE, True)],
)
def test_a_stream_is_complete_with_a_finish_reason_or_done_and_not_before(last: bytes, *, complete: bool) -> None:
    assert fed(HELLO + last)[0].complete is complete


@pytest.mark.parametrize(
    ("stream", "usage_is_known"),
    [
        (EARLY, False),
        (EARLY + FINISH, True),
        (HELLO + chunk(choices=[choice(content="b")], usage={"prompt_tokens": 5, "completion_tokens": 2}), True),
        (HELLO + USAGE, True),
        (HELLO, False),
    ],
)
def test_figures_from_before_most_of_the_answer_are_none(stream: bytes, *, usage_is_known: bool) -> None:
    assert (fed(stream)[0].usage is not None) is usage_is_known


@pytest.mark.parametrize(
    ("stream", "tokens"),
    [
        (b"", 0),
        (COMMENT + FINISH, 0),
        (said("a") * 3, 3),
        (said("a") * 3 + said("x" * 100), 26),
        (said("a") * 3 + said("x" * 100) + CALL, 28),
        (chunk(choices=[choice(reasoning_content="x" * 9)]), 3),
        (said("x" * 9).replace(b"\n", b"\r\n"), 3),
        ((said("x" * 9) * 2).replace(b"\n", b"\r"), 5),
        (said("x") + b"<html>bad gateway</html>", None),
    ],
)
def test_output_is_counted_by_events_or_by_bytes_whichever_is_more(stream: bytes, tokens: int | None) -> None:
    assert fed(stream)[0].counted_tokens == tokens


def test_ordinary_chunks_are_passed_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = (said('"choices": of "error": "usage":{ "finish_reason":"stop"') + CALL) * 3
    monkeypatch.setattr(orjson, "loads", None)
    assert ChatMeter().feed(ordinary) == ordinary


def test_an_error_without_a_last_blank_line_is_seen_at_the_end() -> None:
    meter, passed = fed(HELLO + ERROR.rstrip())
    assert (passed, bool(meter.failure)) == (HELLO, True)


EVENTS = st.sampled_from([HELLO, NULLS, CALL, FINISH, EARLY, USAGE, ERROR, COMMENT, sse.DONE, sse.event(b"{}")])


@settings(deadline=None)
@given(events=st.lists(EVENTS, max_size=12), cuts=st.lists(st.integers(0, 3_000), max_size=12), crlf=st.booleans())
def test_where_a_stream_is_cut_changes_nothing(events: list[bytes], cuts: list[int], *, crlf: bool) -> None:
    data = b"".join(events)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    apart, passed = fed(data, cuts)
    whole, passed_whole = fed(data)
    assert passed == passed_whole
    assert verdict(apart) == verdict(whole)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=12), st.lists(st.integers(0, 3_000), max_size=5))
def test_the_meter_agrees_with_one_that_reads_every_event(events: list[bytes], cuts: list[int]) -> None:
    passed, kept = b"", list[bytes]()
    failed = complete = over = False
    size = written = 0
    for event in events:
        data = sse.data_of(event)
        document = orjson.loads(data) if data.startswith(b"{") else {}
        if data == b"[DONE]":
            complete = over = True
        elif data and (document.get("error") or "choices" not in document):
            failed = over = True
        elif event is USAGE:
            kept = [event]
        else:
            passed += event
            for found in document.get("choices", []):
                delta = found["delta"]
                texts = [delta.get("content", "")]
                for call in delta.get("tool_calls", []):
                    texts += [call["function"]["name"], call["function"]["arguments"]]
                size, written = size + len("".join(texts)), written + any(texts)
                complete = complete or found["finish_reason"] is not None
        if over:
            break
    meter, given_on = fed(b"".join(events), cuts)
    assert (given_on, meter.kept) == (passed, kept)
    assert (bool(meter.failure), meter.over, meter.complete) == (failed, over, complete)
    assert meter.counted_tokens == max(written, -(-size // 4))

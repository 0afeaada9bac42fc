from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.meters.messages import MessagesMeter, usage_of
from gateway_svc.usage import TokenUsage

START = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 1}


def event(kind: str, **members: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps({"type": kind, **members}))


def delta(**members: Any) -> bytes:
    return event("content_block_delta", index=0, delta=members)


HEAD = event("message_start", message={"id": "msg_1", "content": [], "usage": START})
OPENED = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
CLOSED = event("content_block_stop", index=0)
PING = event("ping")
TEXT = delta(type="text_delta", text='say "type":"message_stop" to\r\n\r\nend')
THOUGHT = delta(type="thinking_delta", thinking="hm")
SIGNED = delta(type="signature_delta", signature="c2lnbmVk")
ARGUMENTS = delta(type="input_json_delta", partial_json='{"type":"error"}')
LAST = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
EARLY = event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 3})
STOP = event("message_stop")
ERROR = event("error", error={"type": "overloaded_error", "message": "busy"})
WHOLE = (HEAD, OPENED, PING, TEXT, CLOSED, LAST, STOP)


def fed(data: bytes, cuts: list[int] | None = None) -> tuple[MessagesMeter, bytes]:
    meter = MessagesMeter()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    passed = b"".join(meter.feed(data[start:end]) for start, end in pairwise(edges))
    return meter, passed + meter.end()


def verdict(meter: MessagesMeter) -> tuple[object, ...]:
    told = (meter.kept, meter.failure, meter.over, meter.complete)
    return (*told, meter.usage, meter.counted_tokens)


def test_the_end_is_held_back() -> None:
    meter, passed = fed(b"".join(WHOLE))
    assert passed == HEAD + OPENED + PING + TEXT + CLOSED
    assert meter.kept == [LAST, STOP]
    assert (meter.over, meter.complete, meter.failure) == (True, True, b"")


def test_the_last_figures_replace_the_first() -> None:
    meter, _ = fed(b"".join(WHOLE))
    assert meter.usage == TokenUsage(
        input_tokens=10, cached_input_tokens=4, cache_write_tokens=2, output_tokens=9, reasoning_tokens=0
    )


@pytest.mark.parametrize(
    ("stream", "usage_is_known", "complete"),
    [
        ((HEAD, OPENED, TEXT), False, False),
        ((HEAD, OPENED, TEXT, CLOSED, LAST), True, True),
        ((HEAD, OPENED, TEXT, EARLY), True, False),
        ((HEAD, OPENED, TEXT, EARLY, TEXT), False, False),
        ((HEAD, OPENED, TEXT, LAST, TEXT), False, False),
        ((HEAD, OPENED, TEXT, event("message_delta", delta={"stop_reason": "end_turn"}), STOP), False, True),
        ((OPENED, TEXT, LAST, STOP), False, True),
    ],
)
def test_figures_from_before_the_end_are_none(
    stream: tuple[bytes, ...], *, usage_is_known: bool, complete: bool
) -> None:
    meter, _ = fed(b"".join(stream))
    assert (meter.usage is not None, meter.complete) == (usage_is_known, complete)


def test_only_the_last_of_several_deltas_is_kept() -> None:
    meter, passed = fed(HEAD + TEXT + EARLY + PING + LAST + STOP)
    assert passed == HEAD + TEXT + PING + EARLY
    assert meter.kept == [LAST, STOP]


def test_what_was_kept_is_given_up_when_more_of_the_message_follows() -> None:
    meter = MessagesMeter()
    assert [meter.feed(part) for part in (HEAD, LAST, PING, TEXT)] == [HEAD, b"", PING, LAST + TEXT]
    assert (meter.kept, meter.complete) == ([], False)


def test_an_error_is_not_passed_and_ends_the_stream() -> None:
    meter, passed = fed(HEAD + TEXT + ERROR + TEXT)
    assert passed == HEAD + TEXT
    assert orjson.loads(meter.failure)["error"]["type"] == "overloaded_error"
    assert (meter.over, meter.complete, meter.usage) == (True, False, None)


def test_nothing_is_passed_once_it_is_over() -> None:
    meter, _ = fed(b"".join(WHOLE))
    assert (meter.feed(TEXT), meter.kept) == (b"", [LAST, STOP])


@pytest.mark.parametrize("data", [b"{nonsense", b"[]", b'{"error":{"message":"m"}}', b"[DONE]"])
def test_what_is_not_of_the_dialect_fails(data: bytes) -> None:
    meter, passed = fed(HEAD + sse.event(data))
    assert (passed, meter.failure, meter.over) == (HEAD, data, True)


def test_an_error_without_a_last_blank_line_is_seen_at_the_end() -> None:
    meter, passed = fed(HEAD + ERROR.rstrip())
    assert (passed, bool(meter.failure)) == (HEAD, True)


def test_what_broke_off_in_no_event_is_not_counted() -> None:
    meter, _ = fed(HEAD + TEXT + b"<html>bad gateway</html>")
    assert meter.counted_tokens is None


@pytest.mark.parametrize(
    ("events", "tokens"),
    [
        ((HEAD, OPENED, CLOSED), 0),
        ((HEAD, OPENED, *(delta(type="text_delta", text="a"),) * 5), 5),
        ((delta(type="text_delta", text="a" * 400),), 100),
        ((THOUGHT, SIGNED), 1),
        ((delta(type="input_json_delta", partial_json="a" * 9),), 3),
        ((event("content_block_start", index=0, content_block={"type": "tool_use", "name": "f" * 8}),), 2),
    ],
)
def test_what_the_model_wrote_is_counted(events: tuple[bytes, ...], tokens: int) -> None:
    assert fed(b"".join(events))[0].counted_tokens == tokens


def test_ordinary_events_are_passed_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = MessagesMeter()
    meter.feed(HEAD)
    monkeypatch.setattr(orjson, "loads", None)
    ordinary = (OPENED + PING + TEXT + THOUGHT + SIGNED + ARGUMENTS + CLOSED) * 3
    assert meter.feed(ordinary) == ordinary


def test_an_event_that_never_ends_is_refused() -> None:
    meter = MessagesMeter()
    with pytest.raises(sse.OversizedEvent):
        meter.feed(b"event: content_block_delta\ndata: " + b"a" * (sse.EVENT_BYTES_MAX + 1))


MISNAMED = b"event: ping\n" + sse.event(b'{"type" : "message_stop"}')
UNNAMED = sse.event(orjson.dumps({"type": "content_block_delta", "delta": {"text": "x"}}))
NEW = event("brand_new_event", text="x")
COMMENT = b": hello\n\n"
ENDS = (STOP, MISNAMED, ERROR)
EVENTS = st.sampled_from(
    [HEAD, OPENED, PING, TEXT, THOUGHT, SIGNED, ARGUMENTS, CLOSED, LAST, EARLY, UNNAMED, NEW, COMMENT, *ENDS]
)


@settings(deadline=None)
@given(events=st.lists(EVENTS, max_size=12), cuts=st.lists(st.integers(0, 5_000), max_size=12), crlf=st.booleans())
def test_where_a_stream_is_cut_changes_nothing(events: list[bytes], cuts: list[int], *, crlf: bool) -> None:
    data = b"".join(events)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    apart, passed = fed(data, cuts or list(accumulate(map(len, sse.Splitter().feed(data)))))
    whole, passed_whole = fed(data)
    assert passed == passed_whole
    assert verdict(apart) == verdict(whole)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=12))
def test_the_meter_agrees_with_one_that_reads_every_event(events: list[bytes]) -> None:
    final: dict[str, Any] | None = None
    figures: dict[str, Any] = {}
    counted = written = 0
    over = failed = False
    for found in events:
        document = orjson.loads(sse.data_of(found) or b"{}")
        match document.get("type"):
            case "message_start":
                figures |= document["message"]["usage"]
                final = None
            case "message_delta":
                figures |= document["usage"]
                final = dict(figures)
            case "message_stop" | "error" as kind:
                over, failed = True, kind == "error"
                break
            case "ping" | None:
                pass
            case _:
                final = None
                members = document.get("delta") or document.get("content_block") or {}
                size = sum(len(str(members.get(name, "")).encode()) for name in ("text", "thinking", "partial_json"))
                counted, written = counted + size, written + (size > 0)
    meter, _ = fed(b"".join(events))
    assert (meter.over, bool(meter.failure)) == (over, failed)
    assert meter.usage == (usage_of({"usage": final}) if final is not None else None)
    assert meter.counted_tokens == max(written, -(-counted // 4))


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=12), st.lists(st.integers(0, 5_000), max_size=5))
def test_nothing_is_passed_twice_or_lost_before_the_end(events: list[bytes], cuts: list[int]) -> None:
    meter, passed = fed(b"".join(events), cuts)
    end = next((place for place, found in enumerate(events) if found in ENDS), len(events))
    known = [*sse.Splitter().feed(passed), *meter.kept]
    expected = [found for found in events[: end + 1] if found != ERROR]
    assert sorted(known) == sorted(expected)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input_tokens": 3, "output_tokens": 6}, TokenUsage(input_tokens=3, output_tokens=6)),
        (
            {"input_tokens": 3, "output_tokens": 6, "output_tokens_details": {"thinking_tokens": 4}},
            TokenUsage(input_tokens=3, output_tokens=2, reasoning_tokens=4),
        ),
        (
            {"input_tokens": 3, "output_tokens": 6, "output_tokens_details": {"thinking_tokens": 40}},
            TokenUsage(input_tokens=3, reasoning_tokens=6),
        ),
        (
            {
                "input_tokens": 0,
                "output_tokens": 1,
                "cache_read_input_tokens": None,
                "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
            },
            TokenUsage(cache_write_tokens=5, output_tokens=1),
        ),
        ({"input_tokens": 3, "output_tokens": 6, "cache_creation_input_tokens": -1}, None),
        ({"input_tokens": 3, "output_tokens": 6, "cache_creation": {"ephemeral_5m_input_tokens": True}}, None),
        ({"input_tokens": 3, "output_tokens": 6, "cache_read_input_tokens": 10**9}, None),
        ({"input_tokens": True, "output_tokens": 6}, None),
        ({"input_tokens": 3, "output_tokens": -6}, None),
        ({"input_tokens": 3, "output_tokens": 10**9}, None),
        ({"output_tokens": 6}, None),
        ({}, None),
        (None, None),
    ],
)
def test_figures_are_disjoint_and_broken_ones_are_none(usage: Any, expected: TokenUsage | None) -> None:
    assert usage_of({"usage": usage}) == expected

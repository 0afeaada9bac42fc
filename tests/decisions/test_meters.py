"""What every meter does alike, whatever its dialect."""

from __future__ import annotations

import orjson
import pytest

from gateway_svc import sse
from gateway_svc.dialects import Dialect
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.meters import Meter
from gateway_svc.meters.registry import METERING
from gateway_svc.usage import TokenUsage


def named(kind: str, **members: object) -> bytes:
    return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps({"type": kind, **members}))


def chunk(delta: JsonObject) -> bytes:
    return sse.event(orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))


def started(**usage: object) -> bytes:
    return named("message_start", message={"role": "assistant", "content": [], "usage": usage})


def meter_of(dialect: Dialect) -> Meter:
    make = METERING[dialect].meter
    assert make is not None
    return make()


WROTE = {
    Dialect.CHAT: chunk({"content": "Hello"}),
    Dialect.RESPONSES: named("response.output_text.delta", delta="Hello"),
    Dialect.MESSAGES: named("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
}
HIDDEN = {  # what shows that a model is at work, and nothing of its words
    Dialect.RESPONSES: named("response.output_item.added", output_index=0, item={"type": "reasoning", "summary": []}),
    Dialect.MESSAGES: named("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
}
BEGUN = {
    Dialect.CHAT: chunk({"role": "assistant", "content": ""}),
    Dialect.RESPONSES: named("response.created", response={"status": "in_progress"}),
    Dialect.MESSAGES: started(input_tokens=9, output_tokens=1) + named("ping"),
}
HARMLESS = b": keep-alive\n\nretry: 3000\n\nid: 7\n\nevent: ping\n\ndata:\n\n"
ANSWER = (
    b'{\n"choices": [{"message": {"content": "' + b"long " * 99 + b'"}}],\n\n"usage": {"completion_tokens": 500}\n}\n\n'
)


@pytest.mark.parametrize("dialect", WROTE)
@pytest.mark.parametrize(
    "foreign", [ANSWER, ANSWER.replace(b"\n", b"\r\n"), b"<html>bad gateway</html>\n\n", b"\xff\n\n"]
)
@pytest.mark.parametrize("late", [False, True])
def test_what_is_no_event_ends_a_stream_that_nobody_can_count(dialect: Dialect, foreign: bytes, *, late: bool) -> None:
    before = WROTE[dialect] if late else b""
    meter = meter_of(dialect)
    assert meter.feed(before + foreign) == before
    assert (meter.over, bool(meter.failure), meter.counted_tokens, meter.wrote) == (True, True, None, True)


@pytest.mark.parametrize("dialect", WROTE)
def test_what_is_no_event_is_seen_at_the_end_too(dialect: Dialect) -> None:
    meter = meter_of(dialect)
    assert meter.feed(ANSWER.replace(b"\n", b"")) + meter.end() == b""
    assert (meter.failure, meter.counted_tokens) == (ANSWER.replace(b"\n", b""), None)


@pytest.mark.parametrize("dialect", WROTE)
def test_fields_of_events_without_data_are_passed_on(dialect: Dialect) -> None:
    meter = meter_of(dialect)
    assert meter.feed(HARMLESS + WROTE[dialect]) == HARMLESS + WROTE[dialect]
    assert (meter.over, meter.failure, meter.counted_tokens) == (False, b"", 2)


@pytest.mark.parametrize("dialect", WROTE)
def test_a_model_wrote_once_its_words_are_seen(dialect: Dialect) -> None:
    meter = meter_of(dialect)
    meter.feed(BEGUN[dialect])
    assert not meter.wrote
    meter.feed(WROTE[dialect])
    assert meter.wrote


@pytest.mark.parametrize("dialect", HIDDEN)
def test_a_model_wrote_where_what_it_thinks_is_hidden(dialect: Dialect) -> None:
    meter = meter_of(dialect)
    meter.feed(BEGUN[dialect] + HIDDEN[dialect])
    assert (meter.wrote, meter.counted_tokens) == (True, 0)


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (b"", None),
        (named("ping"), None),
        (started(), None),
        (started(input_tokens=0, output_tokens=0), None),
        (started(input_tokens=-1), None),
        (started(input_tokens="9"), None),
        (started(input_tokens=9, output_tokens=3), TokenUsage(input_tokens=9)),
        (
            started(input_tokens=9, cache_read_input_tokens=4, cache_creation_input_tokens=2),
            TokenUsage(input_tokens=9, cached_input_tokens=4, cache_write_tokens=2),
        ),
        (
            started(input_tokens=9) + named("message_delta", delta={}, usage={"input_tokens": 11, "output_tokens": 5}),
            TokenUsage(input_tokens=9),
        ),
    ],
)
def test_messages_tells_the_input_at_the_beginning(stream: bytes, told: TokenUsage | None) -> None:
    meter = meter_of(Dialect.MESSAGES)
    meter.feed(stream)
    assert meter.told_input == told


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.RESPONSES])
def test_the_others_tell_no_input_at_the_beginning(dialect: Dialect) -> None:
    meter = meter_of(dialect)
    meter.feed(BEGUN[dialect] + WROTE[dialect])
    assert meter.told_input is None


@pytest.mark.parametrize("member", [{"message": {"content": "Hello you"}}, {"text": "Hello you"}])
def test_words_in_the_shape_of_whole_answers_count(member: JsonObject) -> None:
    meter = meter_of(Dialect.CHAT)
    meter.feed(sse.event(orjson.dumps({"choices": [{"index": 0, **member}]})))
    assert (meter.counted_tokens, meter.wrote) == (3, True)

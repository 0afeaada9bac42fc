from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.meters import embeddings
from gateway_svc.meters.responses import EVENT_BYTES_MAX, ResponsesMeter, usage_of
from gateway_svc.usage import TokenUsage

FIGURES = {"input_tokens": 10, "output_tokens": 9, "total_tokens": 19, "input_tokens_details": {"cached_tokens": 4}}
USED = TokenUsage(input_tokens=6, cached_input_tokens=4, output_tokens=9)


def event(kind: str, **members: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps({"type": kind, **members}))


def delta(text: str, of: str = "output_text") -> bytes:
    return event(f"response.{of}.delta", delta=text, item_id="i")


HEAD = event("response.created", response={"id": "resp_1", "usage": None})
TEXT = delta('say "type":"error" and event: error\r\n\r\nto .delta')
WORDS = delta("a stream ends with response.completed")
ARGUMENTS = delta('{"type":"error"}', "function_call_arguments")
THOUGHT = delta("hm", "reasoning_text")
ITEM = event("response.output_item.done", item={"type": "message", "content": [{"text": "hi"}]})
UNNAMED = sse.event(orjson.dumps({"type": "response.output_text.delta", "delta": "unnamed"}))
COMPLETED = event("response.completed", response={"usage": FIGURES})
INCOMPLETE = event("response.incomplete", response={"usage": FIGURES})
SILENT = event("response.completed", response={})
FAILED = event("response.failed", response={"error": {"code": "server_error"}, "usage": FIGURES})
ERROR = event("error", code="server_error", message="busy")
BARE_ERROR = sse.event(b'{"error":{"message":"busy"}}')
COMMENT = b": hello\n\n"


def fed(data: bytes, cuts: list[int] | None = None) -> tuple[ResponsesMeter, bytes]:
    meter = ResponsesMeter()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    passed = b"".join(meter.feed(data[start:end]) for start, end in pairwise(edges))
    return meter, passed + meter.end()


def verdict(meter: ResponsesMeter) -> tuple[object, ...]:
    return (meter.kept, meter.failure, meter.over, meter.complete, meter.usage, meter.counted_tokens)


@pytest.mark.parametrize("last", [COMPLETED, INCOMPLETE])
def test_the_event_that_ends_it_is_held_back_with_its_figures(last: bytes) -> None:
    meter, passed = fed(HEAD + TEXT + ITEM + last + sse.DONE)
    assert passed == HEAD + TEXT + ITEM
    assert (meter.kept, meter.usage, meter.over, meter.complete) == ([last], USED, True, True)


@pytest.mark.parametrize("last", [FAILED, ERROR, BARE_ERROR, sse.event(b"{"), sse.event(b"[]"), sse.event(b'{"a":1}')])
@pytest.mark.parametrize("before", [b"", HEAD + TEXT])
def test_a_failure_is_not_passed_and_ends_the_stream(before: bytes, last: bytes) -> None:
    meter, passed = fed(before + last + TEXT)
    assert (passed, meter.failure, meter.over) == (before, sse.data_of(last), True)
    assert not meter.complete


def test_what_a_failed_response_used_is_told() -> None:
    assert fed(HEAD + FAILED)[0].usage == USED


@pytest.mark.parametrize("stream", [HEAD + TEXT, HEAD + TEXT + SILENT, HEAD + ERROR])
def test_a_stream_without_figures_has_none(stream: bytes) -> None:
    assert fed(stream)[0].usage is None


def test_a_failure_without_a_last_blank_line_is_seen_at_the_end() -> None:
    meter, passed = fed(HEAD + ERROR.rstrip())
    assert (passed, bool(meter.failure)) == (HEAD, True)


@pytest.mark.parametrize(
    ("stream", "tokens"),
    [
        (HEAD + ITEM, 0),
        (HEAD + delta("a") * 5, 5),
        (delta("a" * 400), 100),
        (THOUGHT + ARGUMENTS, 5),
        (UNNAMED, 2),
        (delta("å" * 9).replace(b"\n", b"\r\n"), 5),
        (HEAD + TEXT + b"<html>bad gateway</html>", None),
    ],
)
def test_what_the_model_wrote_is_counted(stream: bytes, tokens: int | None) -> None:
    assert fed(stream)[0].counted_tokens == tokens


def test_ordinary_events_are_passed_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orjson, "loads", None)
    ordinary = (HEAD + TEXT + ARGUMENTS + THOUGHT + ITEM) * 3
    assert ResponsesMeter().feed(ordinary) == ordinary


def test_a_long_answer_may_be_told_whole_in_its_last_event() -> None:
    long = event("response.completed", response={"usage": FIGURES, "output": ["a" * 2 * sse.EVENT_BYTES_MAX]})
    assert fed(long, [5])[0].complete


def test_an_event_that_never_ends_is_refused() -> None:
    with pytest.raises(sse.OversizedEvent):
        ResponsesMeter().feed(b"event: response.output_text.delta\ndata: " + b"a" * (EVENT_BYTES_MAX + 1))


EVENTS = st.sampled_from(
    [
        HEAD,
        TEXT,
        WORDS,
        ARGUMENTS,
        THOUGHT,
        ITEM,
        UNNAMED,
        COMPLETED,
        INCOMPLETE,
        SILENT,
        FAILED,
        ERROR,
        BARE_ERROR,
        COMMENT,
    ]
)


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
    ends = [place for place, found in enumerate(events) if found in (COMPLETED, INCOMPLETE, SILENT)]
    failures = [place for place, found in enumerate(events) if found in (FAILED, ERROR, BARE_ERROR)]
    stop = min([*ends, *failures, len(events)])
    deltas = [orjson.loads(sse.data_of(found)).get("delta", "") for found in events[:stop] if found != COMMENT]
    meter, passed = fed(b"".join(events), cuts)
    assert passed == b"".join(events[:stop])
    assert meter.kept == (events[stop : stop + 1] if stop in ends else [])
    assert bool(meter.failure) is (stop in failures)
    assert meter.usage == (USED if events[stop : stop + 1] in ([COMPLETED], [INCOMPLETE], [FAILED]) else None)
    assert meter.counted_tokens == max(sum(map(bool, deltas)), -(-len("".join(deltas).encode()) // 4))


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (FIGURES, USED),
        (
            {
                "input_tokens": 10,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "output_tokens": 9,
                "output_tokens_details": {"reasoning_tokens": 5},
            },
            TokenUsage(3, 4, 3, 4, 5),
        ),
        ({"input_tokens": 0, "output_tokens": 0}, TokenUsage()),
        ({"input_tokens": -1, "output_tokens": 9}, None),
        ({"input_tokens": 10, "output_tokens": True}, None),
        ({"input_tokens": 10, "output_tokens": 10**12}, None),
        ({"prompt_tokens": 10, "completion_tokens": 9}, None),
        ([], None),
        (None, None),
    ],
)
def test_inclusive_figures_become_disjoint(usage: Any, expected: TokenUsage | None) -> None:
    assert usage_of({"usage": usage}) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "total_tokens": 10}, TokenUsage(input_tokens=10)),
        ({"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}, TokenUsage(input_tokens=10)),
        ({"prompt_tokens": "10"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_embeddings_use_input_alone(usage: Any, expected: TokenUsage | None) -> None:
    assert embeddings.usage_of({"usage": usage}) == expected

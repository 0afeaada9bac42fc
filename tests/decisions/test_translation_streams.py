"""What every translation keeps to, whatever a provider sends."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.dialects import Dialect, Request
from gateway_svc.dialects.registry import parse
from gateway_svc.meters.registry import METERING
from gateway_svc.tellings.registry import TELLINGS
from gateway_svc.translations import StreamTranslation
from gateway_svc.translations.arguments import Arguments
from gateway_svc.translations.registry import PAIRS

PAIR = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-over-{pair[1]}")
SAID: list[Any] = [{"role": "user", "content": "hi"}]
BODIES: dict[Dialect, dict[str, Any]] = {
    Dialect.CHAT: {"model": "m", "messages": SAID, "stream_options": {"include_usage": True}},
    Dialect.RESPONSES: {"model": "m", "input": "hi"},
    Dialect.MESSAGES: {
        "model": "m",
        "max_tokens": 9_000,
        "messages": SAID,
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
    },
}
FIGURES = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}


def asked(dialect: Dialect) -> Request:
    return parse(dialect, orjson.dumps({**BODIES[dialect], "stream": True}))


def opened(pair: tuple[Dialect, Dialect]) -> StreamTranslation:
    return PAIRS[pair].stream(asked(pair[0]))


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def called(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    return chunk(tool_calls=[{"index": index, **more, "function": {"name": "f", "arguments": arguments}}])


# Calls that wait for one whose arguments never come, and one that comes after everything else.
CHAT_EVENTS: list[dict[str, Any]] = [
    chunk(role="assistant", content=""),
    chunk(reasoning_content="hm"),
    chunk(content="Hello"),
    called(0, "", id="a", type="function"),
    called(1, "{}", id="b", type="function"),
    called(2, '{"x": 1', id="c", type="function"),
    called(2, "}"),
    chunk("tool_calls"),
    {"id": "c1", "model": "m", "choices": [], "usage": FIGURES},
]
MESSAGES_EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "m1", "model": "m", "content": [], "usage": {"input_tokens": 5}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "Hello"}},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "a", "name": "f"}},
    {"type": "content_block_start", "index": 3, "content_block": {"type": "tool_use", "id": "b", "name": "f"}},
    {"type": "content_block_delta", "index": 3, "delta": {"type": "input_json_delta", "partial_json": '{"x":1}'}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]
FAR_EVENTS = {Dialect.CHAT: CHAT_EVENTS, Dialect.MESSAGES: MESSAGES_EVENTS}
FAR_ANSWERS: dict[Dialect, dict[str, Any]] = {
    Dialect.CHAT: {
        "id": "c1",
        "model": "m",
        "created": 1,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello",
                    "reasoning_content": "hm",
                    "refusal": "no",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}],
                },
                "logprobs": {"content": [{"token": "H", "logprob": -1, "bytes": [72], "top_logprobs": []}]},
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {**FIGURES, "prompt_tokens_details": {"cached_tokens": 1}},
    },
    Dialect.MESSAGES: {
        "id": "m1",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 5, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 1}},
    },
}


def framed(dialect: Dialect, document: Any) -> bytes:
    name = f"event: {document['type']}\n".encode() if dialect is Dialect.MESSAGES and "type" in document else b""
    return name + sse.event(orjson.dumps(document))


@PAIR
@pytest.mark.parametrize("told", range(len(MESSAGES_EVENTS)))
def test_an_end_is_one_event_an_element_wherever_the_stream_ends(pair: tuple[Dialect, Dialect], told: int) -> None:
    events = [framed(pair[1], document) for document in FAR_EVENTS[pair[1]]]
    stream = opened(pair)
    stream.take(b"".join(events[:told]))
    last = stream.end(events[told:])
    assert [len(sse.events_of(event)) for event in last] == [1] * len(last)
    assert all(isinstance(orjson.loads(sse.data_of(event)), dict) for event in last)


@PAIR
@pytest.mark.parametrize("telling", TELLINGS.values(), ids=TELLINGS)
@pytest.mark.parametrize("usage_wanted", [False, True])
def test_every_telling_ends_every_translation(
    pair: tuple[Dialect, Dialect], telling: Any, *, usage_wanted: bool
) -> None:
    events = [framed(pair[1], document) for document in FAR_EVENTS[pair[1]]]
    stream = opened(pair)
    stream.take(b"".join(events[:-1]))
    receipt = {"micro_credits_charged": 7}
    last = telling.ending(stream.end(events[-1:]), receipt, usage_wanted=usage_wanted)
    assert last.count(b'"micro_credits_charged":7') == 1 or telling is not TELLINGS[pair[0]]
    found = [sse.data_of(event) for event in sse.events_of(last)]
    assert all(orjson.loads(data) for data in found if data not in (b"", b"[DONE]"))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=5), st.just("{}")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
DEEP = orjson.loads(b"[" * 300 + b"]" * 300)
VALUES = st.one_of(JSON, st.just(DEEP), st.just(2**63))


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in a document, itself the first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in inner for place in places_of(item, (*path, name)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a document with something else at a place."""
    if not path:
        return new
    head, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[head] = changed(value[head], tuple(rest), new)
    return copy


@st.composite
def broken(draw: st.DrawFn, document: dict[str, Any]) -> Any:
    """Return a document in which some values are any others, in the places of any kind of value."""
    for _ in range(draw(st.integers(0, 2))):
        places = [place for place in places_of(document) if place]
        if places:
            document = changed(document, draw(st.sampled_from(places)), draw(VALUES))
    return document


def dumped(document: Any) -> bytes:
    """Write what may be nested deeper than orjson writes."""
    return json.dumps(document).encode()


@PAIR
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_nothing_but_a_value_error_comes_of_any_stream(pair: tuple[Dialect, Dialect], data: st.DataObject) -> None:
    stream = opened(pair)
    documents = [data.draw(broken(document)) for document in FAR_EVENTS[pair[1]]]
    events = [sse.event(dumped(document)) for document in documents]
    kept = data.draw(st.integers(0, 3))
    try:
        for one in events[: len(events) - kept]:
            stream.take(one)
        last = stream.end(events[len(events) - kept :])
    except ValueError:
        return
    assert TELLINGS[pair[0]].ending(last, {"micro_credits_charged": 7}, usage_wanted=True)


@PAIR
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_nothing_but_a_value_error_comes_of_any_answer(pair: tuple[Dialect, Dialect], data: st.DataObject) -> None:
    body = orjson.loads(dumped(data.draw(broken(FAR_ANSWERS[pair[1]]))))
    try:
        answer = PAIRS[pair].answer(body, asked(pair[0]))
    except ValueError:
        return
    assert orjson.dumps(answer)


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.RESPONSES, Dialect.MESSAGES])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_meter_raises_for_nothing_that_a_stream_holds(dialect: Dialect, data: st.DataObject) -> None:
    make = METERING[dialect].meter
    assert make is not None
    meter = make()
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 9}}}
    told = [{"type": "response.output_text.delta", "delta": "Hello"}, done]
    events = [data.draw(broken(document)) for document in FAR_EVENTS.get(dialect, told)]
    for document in events:
        meter.feed(b"event: x\n" + sse.event(dumped(document)))
    meter.end()
    assert meter.wrote in (True, False)
    assert meter.usage is None or meter.usage.total >= 0
    assert meter.told_input is None or meter.told_input.total > 0
    assert meter.counted_tokens is None or meter.counted_tokens >= 0


@given(st.text(alphabet=' {}"\\a[]1:,', max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_arguments_are_whole_when_they_are_one_object(text: str, cuts: list[int]) -> None:
    arguments = Arguments()
    places = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    for start, end in itertools.pairwise(places):
        arguments.add(text[start:end])
    try:
        whole = isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        whole = False
    assert (arguments.text(), arguments.complete()) == (text, whole)


@pytest.mark.parametrize("text", ['{"a": "}{\\\\"}', '{"a": {"b": "\\""}} \n', "{}", '{"é": [{}]}'])
def test_objects_are_whole_however_they_are_cut(text: str) -> None:
    arguments = Arguments()
    for character in text:
        assert not arguments.complete() or text.startswith(arguments.text().rstrip())
        arguments.add(character)
    assert arguments.complete()


TEXTS = "s" * 60
Work = Callable[[int], Callable[[], object]]


def request_work(pair: tuple[Dialect, Dialect], member: str, item: Any) -> Work:
    def prepared(size: int) -> Callable[[], object]:
        request = parse(pair[0], orjson.dumps({**BODIES[pair[0]], member: [item] * size}))
        return lambda: PAIRS[pair].request(request)

    return prepared


def stream_work(pair: tuple[Dialect, Dialect], *repeated: dict[str, Any]) -> Work:
    """Let the events come again and again, beside a call whose arguments are as long as they."""

    def prepared(size: int) -> Callable[[], object]:
        first = called(0, '{"a": "' + "y" * 50 * size, id="a")
        events = [framed(pair[1], document) for document in (first, *(repeated * size))]

        def run() -> None:
            stream = opened(pair)
            for one in events:
                stream.take(one)
            stream.end([])

        return run

    return prepared


def at_once(size: int) -> Callable[[], object]:
    calls = [{"index": place % 1_000, "id": "c", "function": {"arguments": TEXTS}} for place in range(size)]
    one = sse.event(orjson.dumps(chunk(tool_calls=calls)))
    return lambda: opened((Dialect.MESSAGES, Dialect.CHAT)).take(one)


RESPONSES, MESSAGES, CHAT = (
    (Dialect.RESPONSES, Dialect.CHAT),
    (Dialect.MESSAGES, Dialect.CHAT),
    (Dialect.CHAT, Dialect.MESSAGES),
)
WORKS: dict[str, Work] = {
    "system items": request_work(RESPONSES, "input", {"role": "system", "content": TEXTS * 5}),
    "assistant items": request_work(RESPONSES, "input", {"role": "assistant", "content": TEXTS}),
    "calls": request_work(
        RESPONSES, "input", {"type": "function_call", "call_id": "c", "name": "n", "arguments": TEXTS}
    ),
    "outputs": request_work(RESPONSES, "input", {"type": "function_call_output", "call_id": "c", "output": TEXTS}),
    "assistant messages": request_work(CHAT, "messages", {"role": "assistant", "content": TEXTS}),
    "user messages": request_work(CHAT, "messages", {"role": "user", "content": TEXTS}),
    "blocks": request_work(MESSAGES, "messages", {"role": "user", "content": [{"type": "text", "text": TEXTS}] * 5}),
    "deltas of a call that waits": stream_work(MESSAGES, called(1, "z" * 20, id="b")),
    "deltas of a call that is open": stream_work(MESSAGES, called(0, "}" * 20)),
    "thoughts and texts beside an open call": stream_work(RESPONSES, chunk(content="a"), chunk(reasoning_content="b")),
    "deltas at once": at_once,
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_eight_times_the_work_takes_no_more_than_a_few_times_eight(work: Work) -> None:
    def seconds(run: Callable[[], object]) -> float:
        began = time.thread_time()
        run()
        return time.thread_time() - began

    little, much = work(1_000), work(8_000)
    took = [(seconds(little), seconds(much)) for _ in range(5)]  # in turn, so that a slow moment is both sizes'
    assert min(long for _, long in took) / min(short for short, _ in took) < 16  # 64 where it grows with the square

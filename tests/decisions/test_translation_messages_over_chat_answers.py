from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.dialects import Request, messages
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.meters.messages import MessagesMeter
from gateway_svc.translations.messages_over_chat import MessagesOverChat

OVER = MessagesOverChat()
THINKING = {"type": "enabled", "budget_tokens": 2_048}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 9,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
FIGURES = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 4,
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 2},
}


def asked(**fields: Any) -> Request:
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return messages.parse(orjson.dumps(document))


def answered(message: dict[str, Any], finish: str = "stop", usage: Any = USAGE, **fields: Any) -> Any:
    choice: JsonObject = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return OVER.answer({"id": "chatcmpl-1", "model": "gpt", "choices": [choice], "usage": usage}, asked(**fields))


def test_an_answer_is_a_message() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"content": "hi", "reasoning_content": "hm", "tool_calls": [call]}
    assert answered(message, "tool_calls", thinking=THINKING) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "gpt",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": FIGURES,
    }


@pytest.mark.parametrize("fields", [{}, {"thinking": {"type": "adaptive", "display": "omitted"}}])
def test_thinking_is_shown_to_those_who_asked_for_it(fields: dict[str, Any]) -> None:
    content = answered({"content": "hi", "reasoning_content": "hm"}, **fields)["content"]
    assert content == [{"type": "text", "text": "hi"}]


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": "hi"}, "stop", "end_turn"),
        ({"content": "hi"}, "length", "max_tokens"),
        ({"content": None}, "content_filter", "refusal"),
        ({"content": None, "refusal": "no"}, "stop", "refusal"),
        ({"content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}, "stop", "tool_use"),
        ({"content": None, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}, "length", "max_tokens"),
        ({"content": "hi"}, "brand_new", "end_turn"),
    ],
)
def test_the_reason_to_stop_is_translated(message: dict[str, Any], finish: str, reason: str) -> None:
    assert answered(message, finish)["stop_reason"] == reason


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), (" ", {}), ("{}", {}), ('{"a":', {"INVALID_JSON": '{"a":'}), ("[1]", {"INVALID_JSON": "[1]"})],
)
def test_arguments_are_always_an_object(arguments: str, expected: dict[str, Any]) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    assert answered({"content": None, "tool_calls": [call]})["content"][0]["input"] == expected


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"message": {"content": [1]}}]}])
def test_what_is_no_answer_is_told_apart(body: Any) -> None:
    with pytest.raises(ValueError, match="answer"):
        OVER.answer(body, asked())


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse.event(orjson.dumps({"id": "chatcmpl-1", "model": "gpt", "choices": [choice]}))


def call(index: int, arguments: str, call_id: str = "") -> bytes:
    head = {"id": call_id, "type": "function"} if call_id else {}
    function = {"name": f"f{call_id}", "arguments": arguments} if call_id else {"arguments": arguments}
    return chunk(tool_calls=[{"index": index, **head, "function": function}])


USAGE_CHUNK = sse.event(orjson.dumps({"id": "chatcmpl-1", "choices": [], "usage": USAGE}))


def streamed(*chunks: bytes, **fields: Any) -> list[Any]:
    """Translate a stream and read it as its client does: by names, which must be those in the data."""
    stream = OVER.stream(asked(stream=True, **fields))
    told = b"".join(stream.take(part) for part in chunks) + b"".join(stream.end([USAGE_CHUNK]))
    events = []
    for event in sse.Splitter().feed(told):
        document = orjson.loads(sse.data_of(event))
        assert sse.name_of(event) == document["type"]
        events.append(document)
    return events


def put_together(events: list[Any]) -> tuple[list[Any], Any]:
    """Build the message that events tell, as strictly as their order is documented."""
    blocks: list[Any] = []
    opened = False
    for event in events[1:-2]:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert (opened, index) == (False, len(blocks))
                blocks.append({**block, "partial": ""} if block["type"] == "tool_use" else dict(block))
                opened = True
            case {"type": "content_block_delta", "index": index, "delta": {"type": kind, **text}}:
                assert (opened, index) == (True, len(blocks) - 1)
                name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial"}[kind]
                blocks[-1][name] += next(iter(text.values()))
            case {"type": "content_block_stop", "index": index}:
                assert (opened, index) == (True, len(blocks) - 1)
                opened = False
            case _:
                raise AssertionError(event)
    assert not opened
    assert [events[0]["type"], *(event["type"] for event in events[-2:])] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    return blocks, events[-2]


def test_a_stream_is_told_block_by_block() -> None:
    events = streamed(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="h") + chunk(reasoning="m"),
        chunk(content="hel"),
        chunk(content="lo"),
        call(0, "", "c1"),
        call(0, '{"a":'),
        call(0, "1}"),
        call(1, "{}", "c2"),
        chunk("tool_calls"),
        thinking=THINKING,
    )
    assert events[0]["message"] == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "gpt",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    blocks, last = put_together(events)
    assert blocks == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "hello"},
        {"type": "tool_use", "id": "c1", "name": "fc1", "input": {}, "partial": '{"a":1}'},
        {"type": "tool_use", "id": "c2", "name": "fc2", "input": {}, "partial": "{}"},
    ]
    assert last == {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": FIGURES,
    }


def test_calls_that_run_side_by_side_are_told_one_after_the_other() -> None:
    blocks, _ = put_together(
        streamed(
            call(0, '{"a":', "c1"),
            call(1, '{"b":', "c2"),
            call(0, "1}"),
            call(1, "2}"),
            call(2, "{}", "c3"),
            chunk("stop"),
        )
    )
    assert [(block["id"], block["partial"]) for block in blocks] == [
        ("c1", '{"a":1}'),
        ("c2", '{"b":2}'),
        ("c3", "{}"),
    ]


def test_a_second_call_is_told_as_soon_as_the_first_is_complete() -> None:
    stream = OVER.stream(asked(stream=True))
    stream.take(call(0, "{}", "c1"))
    assert b'"id":"c2"' in stream.take(call(1, "", "c2"))


def test_calls_with_one_index_and_ids_of_their_own_are_calls_of_their_own() -> None:
    blocks, _ = put_together(streamed(call(0, "{}", "c1"), call(0, "{}", "c2")))
    assert [block["id"] for block in blocks] == ["c1", "c2"]


def test_an_answer_that_says_nothing_is_a_message_all_the_same() -> None:
    blocks, last = put_together(streamed(chunk("stop")))
    assert (blocks, last["delta"]["stop_reason"]) == ([], "end_turn")


def test_a_refusal_is_text_and_a_reason() -> None:
    blocks, last = put_together(streamed(chunk(refusal="no"), chunk("stop")))
    assert (blocks, last["delta"]["stop_reason"]) == ([{"type": "text", "text": "no"}], "refusal")


@pytest.mark.parametrize(
    "chunks",
    [
        (b"data: {nonsense\n\n",),
        (b"data: []\n\n",),
        (b'data: {"object":"other"}\n\n',),
        (chunk(content=[1]),),
        (call(0, "{}", "c1"), call(1, "", "c2"), call(0, "more")),
    ],
)
def test_what_is_no_stream_of_chat_is_told_apart(chunks: tuple[bytes, ...]) -> None:
    stream = OVER.stream(asked(stream=True))
    with pytest.raises(ValueError, match=r".+"):
        stream.take(b"".join(chunks))


PIECES = st.lists(st.text(min_size=1, max_size=8), max_size=4)


@settings(deadline=None)
@given(
    thoughts=PIECES, texts=PIECES, inputs=st.lists(st.dictionaries(st.text(max_size=3), st.integers(0, 99)), max_size=3)
)
def test_streams_and_whole_answers_say_the_same(
    thoughts: list[str], texts: list[str], inputs: list[dict[str, int]]
) -> None:
    arguments = [orjson.dumps(given).decode() for given in inputs]
    chunks = [chunk(reasoning_content=text) for text in thoughts] + [chunk(content=text) for text in texts]
    for index, told in enumerate(arguments):
        chunks += [call(index, told[:3], f"c{index}"), call(index, told[3:])]
    blocks, last = put_together(streamed(*chunks, chunk("stop"), thinking=THINKING))
    calls = [
        {"id": f"c{index}", "function": {"name": f"fc{index}", "arguments": told}}
        for index, told in enumerate(arguments)
    ]
    message = {"content": "".join(texts), "reasoning_content": "".join(thoughts), "tool_calls": calls}
    whole = answered(message, thinking=THINKING)
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = orjson.loads(block.pop("partial"))
    assert (blocks, last["delta"]["stop_reason"]) == (whole["content"], whole["stop_reason"])


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 5), max_size=6))
def test_how_many_events_come_at_once_changes_nothing(cuts: list[int]) -> None:
    chunks = [chunk(content="a"), call(0, "{", "c1"), call(0, "}"), chunk(content="b"), chunk("stop")]
    groups: list[bytes] = []
    rest = chunks
    for cut in [*cuts, len(chunks)]:
        groups.append(b"".join(rest[:cut]))
        rest = rest[cut:]
    assert streamed(*groups) == streamed(*chunks)


def test_our_own_meter_reads_what_is_told() -> None:
    stream = OVER.stream(asked(stream=True))
    meter = MessagesMeter()
    meter.feed(stream.take(chunk(content="hi")) + b"".join(stream.end([USAGE_CHUNK])))
    assert meter.complete
    assert meter.usage is not None
    assert (meter.usage.total, meter.usage.reasoning_tokens) == (21, 2)

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.dialects import Request, chat, messages
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.translations.chat_over_messages import ChatOverMessages
from gateway_svc.translations.messages_over_chat import MessagesOverChat

OVER = ChatOverMessages()
FIGURES: JsonObject = {
    "input_tokens": 3,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 5,
    "output_tokens": 6,
    "output_tokens_details": {"thinking_tokens": 2},
}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 6,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def asked(**fields: Any) -> Request:
    return chat.parse(orjson.dumps({"model": "claude", "messages": [{"role": "user", "content": "hi"}], **fields}))


def message(*content: Any, stop: str = "end_turn") -> JsonObject:
    return {"id": "msg_1", "model": "claude", "content": list(content), "stop_reason": stop, "usage": FIGURES}


def test_a_message_is_an_answer() -> None:
    told: Any = OVER.answer(
        message(
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            stop="tool_use",
        ),
        asked(),
    )
    assert told["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hi",
                "reasoning_content": "hm",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ]
    assert told["usage"] == USAGE


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("brand_new", "stop"),
    ],
)
def test_the_reason_to_stop_is_translated(stop: str, finish: str) -> None:
    told: Any = OVER.answer(message(stop=stop), asked())
    assert told["choices"][0]["finish_reason"] == finish


def test_an_answer_without_content_is_none() -> None:
    with pytest.raises(ValueError, match="content"):
        OVER.answer({"type": "error"}, asked())


def event(kind: str, **members: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps({"type": kind, **members}))


def opened(index: int, **block: Any) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta(index: int, **members: Any) -> bytes:
    return event("content_block_delta", index=index, delta=members)


def closed(index: int) -> bytes:
    return event("content_block_stop", index=index)


HEAD = event("message_start", message={"id": "msg_1", "model": "claude", "usage": {**FIGURES, "output_tokens": 1}})
LAST = [
    event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 6}),
    event("message_stop"),
]


def streamed(*events: bytes, usage_wanted: bool = True) -> list[Any]:
    fields = {"stream_options": {"include_usage": True}} if usage_wanted else {}
    stream = OVER.stream(asked(stream=True, **fields))
    told = b"".join(stream.take(part) for part in (HEAD, *events)) + b"".join(stream.end(LAST))
    return [orjson.loads(sse.data_of(found)) for found in sse.Splitter().feed(told)]


def test_a_stream_is_told_in_chunks() -> None:
    chunks = streamed(
        event("ping"),
        opened(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="hm") + delta(0, type="signature_delta", signature="s"),
        closed(0),
        opened(1, type="text", text=""),
        delta(1, type="text_delta", text='say "hi"'),
        closed(1),
        opened(2, type="tool_use", id="c1", name="f", input={}),
        delta(2, type="input_json_delta", partial_json=""),
        delta(2, type="input_json_delta", partial_json='{"a":1}'),
        closed(2),
        opened(3, type="tool_use", id="c2", name="g", input={}),
        closed(3),
    )
    assert [found["choices"][0]["delta"] for found in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": 'say "hi"'},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)
    assert {(found["id"], found["object"], found["model"]) for found in chunks} == {
        ("msg_1", "chat.completion.chunk", "claude")
    }


def test_a_call_without_arguments_has_an_empty_object_before_the_next_begins() -> None:
    tool = {"type": "tool_use", "name": "f", "input": {}}
    chunks = streamed(opened(0, id="c1", **tool), closed(0), opened(1, id="c2", **tool))
    calls = [call for found in chunks[:-1] for call in found["choices"][0]["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]["arguments"]) for call in calls] == [
        (0, ""),
        (0, "{}"),
        (1, ""),
        (1, "{}"),
    ]


def test_figures_from_before_the_answer_are_not_told() -> None:
    stream = OVER.stream(asked(stream=True))
    stream.take(HEAD)
    last = stream.end([event("message_delta", delta={"stop_reason": "end_turn"}), event("message_stop")])
    assert [orjson.loads(sse.data_of(found))["choices"][0]["finish_reason"] for found in last] == ["stop"]


@pytest.mark.parametrize("usage_wanted", [True, False])
def test_chunks_have_an_empty_usage_only_where_usage_is_wanted(*, usage_wanted: bool) -> None:
    chunks = streamed(delta(0, type="text_delta", text="hi"), usage_wanted=usage_wanted)
    assert ["usage" in found for found in chunks[:-1]] == [usage_wanted] * 3


@pytest.mark.parametrize("events", [b"data: {nonsense\n\n", b"data: []\n\n", b"data: {}\n\n"])
def test_what_is_no_stream_of_messages_is_told_apart(events: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        OVER.stream(asked(stream=True)).take(events)


CALLS = st.lists(st.dictionaries(st.text(max_size=3), st.integers(0, 99)), max_size=3)


@settings(deadline=None)
@given(thought=st.text(min_size=1), text=st.text(min_size=1), inputs=CALLS)
def test_an_answer_goes_there_and_back(thought: str, text: str, inputs: list[dict[str, int]]) -> None:
    content = [
        {"type": "thinking", "thinking": thought, "signature": ""},
        {"type": "text", "text": text},
        *({"type": "tool_use", "id": f"c{index}", "name": "f", "input": told} for index, told in enumerate(inputs)),
    ]
    sent = message(*content, stop="tool_use" if inputs else "end_turn")
    near = messages.parse(
        orjson.dumps({"model": "m", "messages": [{"role": "user", "content": ""}], "thinking": {"type": "adaptive"}})
    )
    back = MessagesOverChat().answer(OVER.answer(sent, asked()), near)
    assert {name: back[name] for name in ("content", "stop_reason", "usage")} == {
        name: sent[name] for name in ("content", "stop_reason", "usage")
    }

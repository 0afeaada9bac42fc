from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc import sse
from gateway_svc.dialects import Dialect, Request, chat, messages
from gateway_svc.dialects.reading import JsonObject
from gateway_svc.meters.messages import MessagesMeter
from gateway_svc.translations.messages_over_chat import MessagesOverChat
from mesh.errors import InvalidArgument

OVER = MessagesOverChat()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
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


def translated(**fields: Any) -> Any:
    return OVER.request(asked(**fields)).document


def said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def answered(message: dict[str, Any], finish: str = "stop", usage: Any = USAGE, **fields: Any) -> Any:
    choice: JsonObject = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return OVER.answer({"id": "chatcmpl-1", "model": "gpt", "choices": [choice], "usage": usage}, asked(**fields))


def test_a_conversation_with_tools_keeps_its_order() -> None:
    document = translated(
        system=[{"type": "text", "text": "be kind"}, {"type": "text", "text": "be brief"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "one moment"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                    {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "one"}, IMAGE]},
                    {"type": "tool_result", "tool_use_id": "c2", "content": "broke", "is_error": True},
                    {"type": "text", "text": "go on"},
                ],
            },
            {"role": "system", "content": "hurry"},
        ],
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]
    assert document["messages"] == [
        {"role": "system", "content": "be kind\n\nbe brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE_PART]},
        {"role": "assistant", "content": "one moment", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: broke"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Images that the tool returned:"},
                IMAGE_PART,
                {"type": "text", "text": "go on"},
            ],
        },
        {"role": "system", "content": "hurry"},
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 50}, {"max_tokens": 50}),
        ({"temperature": 0.5, "top_p": 0.1, "top_k": 3}, {"temperature": 0.5, "top_p": 0.1, "top_k": 3}),
        ({"stop_sequences": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        ),
        (
            {"tools": [{**TOOL, "strict": True, "type": "custom", "defer_loading": False}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"type": "object"},
                            "description": "d",
                            "strict": True,
                        },
                    }
                ]
            },
        ),
        ({"thinking": THINKING}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 8_000}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 32_000}}, {"reasoning_effort": "high"}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}, {"reasoning_effort": "xhigh"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
                }
            },
        ),
    ],
)
def test_fields_find_their_place(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    document = translated(**fields)
    assert {name: document.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "disabled"}},
        {"cache_control": {"type": "ephemeral"}, "service_tier": "auto", "speed": "standard", "top_k": None},
    ],
)
def test_what_says_nothing_to_a_chat_model_adds_nothing(fields: dict[str, Any]) -> None:
    assert translated(**fields) == translated()


def test_a_name_that_openai_finds_too_long_goes_by_its_digest() -> None:
    assert len(translated(metadata={"user_id": "u" * 65})["user"]) == 64


def test_the_request_becomes_one_of_chat_with_the_clients_limit_and_end_user() -> None:
    far = OVER.request(asked(max_tokens=50, stream=True, metadata={"user_id": "u"}, tools=[TOOL]))
    assert (far.dialect, far.stream, far.usage_wanted, far.max_tokens) == (Dialect.CHAT, True, True, 50)
    assert (far.end_user, far.tools) == ("u", ("f",))
    assert chat.limited(far, "gpt-5", 7)["max_completion_tokens"] == 7 or chat.limited(far, "x", 7)["max_tokens"] == 7


def test_a_text_document_is_text_and_a_pdf_is_a_file() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}}
    text = {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "d"}}
    assert translated(**said(pdf, text))["messages"][0]["content"] == [
        {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,aGk="}},
        {"type": "text", "text": "t\n\nd"},
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"unheard_of": 1}, "unheard_of"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages[1]"),
        (said({"type": "search_result", "content": []}), "messages[0].content[0]"),
        (said({"type": "document", "source": {"type": "url", "url": "u"}}), "messages[0].content[0].source"),
        (
            said({"type": "document", "source": {"type": "text", "data": "d"}, "citations": {"enabled": True}}),
            "messages[0].content[0].citations",
        ),
        (
            said({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "tool_reference"}]}),
            "messages[0].content[0].content[0]",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"}]},
                    {"role": "user", "content": "b"},
                ]
            },
            "messages[0].content[0]",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
                    {"role": "user", "content": "b"},
                ]
            },
            "messages[0].content[0]",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{**TOOL, "input_examples": [{"a": 1}]}]}, "tools[0].input_examples"),
        ({"thinking": {"type": "between_tools"}}, "thinking"),
        ({"output_config": {"task_budget": {"type": "tokens", "total": 5}}}, "output_config.task_budget"),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format"),
    ],
)
def test_what_has_no_place_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translated(**fields)
    assert (caught.value.reason, caught.value.details["field"]) == ("UNTRANSLATABLE_FIELD", field)


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

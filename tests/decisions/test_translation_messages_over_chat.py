from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_svc.dialects import Dialect, Request, chat, messages
from gateway_svc.translations.messages_over_chat import MessagesOverChat
from mesh.errors import InvalidArgument

OVER = MessagesOverChat()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
THINKING = {"type": "enabled", "budget_tokens": 2_048}


def asked(**fields: Any) -> Request:
    document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return messages.parse(orjson.dumps(document))


def translated(**fields: Any) -> Any:
    return OVER.request(asked(**fields)).document


def said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


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
    assert (chat.limited(far, "gpt-5", 7)["max_completion_tokens"], chat.limited(far, "x", 7)["max_tokens"]) == (7, 7)


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

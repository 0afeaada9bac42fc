from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc.dialects import Dialect, Request, chat, messages
from gateway_svc.translations.chat_over_messages import ChatOverMessages
from gateway_svc.translations.messages_over_chat import MessagesOverChat
from mesh.errors import InvalidArgument

OVER = ChatOverMessages()
PIXEL = "data:image/png;base64,aGk="
FUNCTION = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object"}


def asked(**fields: Any) -> Request:
    return chat.parse(orjson.dumps({"model": "claude", "messages": [{"role": "user", "content": "hi"}], **fields}))


def translated(**fields: Any) -> Any:
    return OVER.request(asked(**fields)).document


def said(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_a_conversation_with_tools_keeps_its_turns() -> None:
    function = {"name": "f", "arguments": '{"a":1}'}
    calls = [{"id": f"c{number}", "type": "function", "function": function} for number in (1, 2)]
    document = translated(
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
            },
            {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "hm", "annotations": []},
            {"role": "tool", "tool_call_id": "c1", "content": "one", "name": "f"},
            {"role": "tool", "tool_call_id": "c2", "content": ""},
            {"role": "user", "content": "go on"},
        ]
    )
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert document["system"] == "be kind"
    assert document["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "one"}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": []},
                {"type": "text", "text": "go on"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"temperature": 2}, {"temperature": 1.0}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"response_format": {"type": "json_object"}}, {"system": "Answer with one JSON object and nothing else."}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "description": "d"},
                },
                "reasoning_effort": "minimal",
            },
            {
                "output_config": {
                    "effort": "low",
                    "format": {"type": "json_schema", "schema": {"description": "d", **SCHEMA}},
                },
                "thinking": {"type": "adaptive", "display": "summarized"},
            },
        ),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"tools": [FUNCTION]}, {"tool_choice": {"type": "auto"}}),
        ({"tools": [FUNCTION], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": [FUNCTION], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
                    }
                ]
            },
            {"tools": [{"name": "f", "input_schema": SCHEMA, "description": "d", "strict": True}]},
        ),
    ],
)
def test_fields_find_their_place(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    document = translated(**fields)
    assert {name: document.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"seed": None, "top_logprobs": 0, "store": False, "verbosity": "medium", "modalities": ["text"]},
        {"metadata": {"a": "b"}, "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"max_tokens": 5, "stream_options": {"include_usage": True}, "service_tier": "auto"},
    ],
)
def test_what_changes_no_answer_adds_nothing(fields: dict[str, Any]) -> None:
    assert translated(**fields) == translated()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"seed": 7}, "seed"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"verbosity": "low"}, "verbosity"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"messages": [{"role": "user", "name": "ada", "content": "hi"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "assistant", "content": "a", "function_call": {"name": "f"}}]},
            "messages[0].function_call",
        ),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        (said({"type": "file", "file": {"file_data": "f"}}), "messages[0].content[0]"),
        (said({"type": "file", "file": {"file_data": "data:text/csv;base64,aGk="}}), "messages[0].content[0]"),
        (
            said({"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}),
            "messages[0].content[0].image_url.detail",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0]"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ],
)
def test_what_has_no_place_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translated(**fields)
    assert (caught.value.reason, caught.value.details["field"]) == ("UNTRANSLATABLE_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": "sometimes", "tools": [FUNCTION]}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}]},
            "messages[0].tool_calls[0]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[1]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translated(**fields)
    assert (caught.value.reason, caught.value.details["field"]) == ("INVALID_FIELD", field)


def test_a_pdf_is_a_document() -> None:
    url = "data:application/pdf;base64,aGk="
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": url}}
    source = {"type": "base64", "media_type": "application/pdf", "data": "aGk="}
    assert translated(**said(part))["messages"][0]["content"] == [
        {"type": "document", "source": source, "title": "a.pdf"}
    ]


def test_the_request_becomes_one_of_messages_with_the_clients_limit_and_end_user() -> None:
    far = OVER.request(asked(max_completion_tokens=50, stream=True, user="u", tools=[FUNCTION]))
    assert (far.dialect, far.stream, far.max_tokens, far.end_user, far.tools) == (
        Dialect.MESSAGES,
        True,
        50,
        "u",
        ("f",),
    )
    assert messages.limited(far, "claude", 7)["max_tokens"] == 7


@pytest.mark.parametrize(
    ("model", "effort", "limit", "thinking"),
    [
        ("claude-sonnet-4-5-20250929", "low", 8_000, {"type": "enabled", "budget_tokens": 2_000}),
        ("claude-sonnet-4-20250514", "medium", 8_000, {"type": "enabled", "budget_tokens": 4_000}),
        ("claude-3-7-sonnet-20250219", "high", 8_000, {"type": "enabled", "budget_tokens": 6_000}),
        ("us.anthropic.claude-opus-4-1-20250805-v1:0", "low", 1_100, {"type": "enabled", "budget_tokens": 1_024}),
        ("claude-haiku-4-5", "low", 1_024, None),
        ("claude-opus-4-6", "high", 8_000, {"type": "adaptive"}),
        ("claude-opus-5", "high", 8_000, {"type": "adaptive"}),
        ("another-model", "high", 8_000, {"type": "adaptive"}),
    ],
)
def test_effort_is_a_budget_for_models_that_know_no_other(
    model: str, effort: str, limit: int, thinking: dict[str, Any] | None
) -> None:
    document: Any = messages.limited(OVER.request(asked(reasoning_effort=effort)), model, limit)
    expected = None if thinking is None else {**thinking, "display": "summarized"}
    assert document.get("thinking") == expected
    assert ("output_config" in document) is (thinking is not None and thinking["type"] == "adaptive")


CALLS = st.lists(st.dictionaries(st.text(max_size=3), st.integers(0, 99)), max_size=3)


@settings(deadline=None)
@given(system=st.text(min_size=1), texts=st.lists(st.text(min_size=1), min_size=1, max_size=3), inputs=CALLS)
def test_a_request_goes_there_and_back(system: str, texts: list[str], inputs: list[dict[str, int]]) -> None:
    calls = [
        {"id": f"c{index}", "type": "function", "function": {"name": "f", "arguments": orjson.dumps(given).decode()}}
        for index, given in enumerate(inputs)
    ]
    sent: list[Any] = [
        {"role": "system", "content": system},
        {"role": "user", "content": [{"type": "text", "text": text} for text in texts]},
    ]
    if calls:
        sent.append({"role": "assistant", "content": None, "tool_calls": calls})
        sent += [{"role": "tool", "tool_call_id": f"c{index}", "content": "done"} for index in range(len(calls))]
    back: Any = MessagesOverChat().request(OVER.request(asked(messages=sent))).document
    assert back["messages"] == sent

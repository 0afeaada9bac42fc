from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_svc.chat import JsonObject, parse
from gateway_svc.messages import messages_body
from gateway_svc.messages_answers import completion_of
from mesh.errors import InvalidArgument

PIXEL = "data:image/png;base64,aGk="


def translated(**fields: Any) -> dict[str, Any]:
    document = {"model": "claude", "messages": [{"role": "user", "content": "hi"}], **fields}
    return dict(messages_body(parse(orjson.dumps(document)), 99))


def test_a_conversation_with_tools_keeps_its_turns() -> None:
    function = {"name": "f", "arguments": '{"a":1}'}
    calls = [{"id": f"c{number}", "type": "function", "function": function} for number in (1, 2)]
    body = translated(
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
            },
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
            {"role": "user", "content": "go on"},
        ]
    )
    assert body["system"] == "be kind"
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    image = body["messages"][0]["content"][1]
    assert image == {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert body["messages"][1]["content"][1] == {"type": "tool_use", "id": "c2", "name": "f", "input": {"a": 1}}
    assert [block["type"] for block in body["messages"][2]["content"]] == ["tool_result", "tool_result", "text"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"temperature": 2}, {"temperature": 1.0}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"max_tokens": 5}, {"max_tokens": 99}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
    ],
)
def test_fields_find_their_place(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    body = translated(**fields)
    assert {name: body[name] for name in expected} == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"functions": [{"name": "f"}]},
        {"tool_choice": "sometimes", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "xml"}},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}]},
    ],
)
def test_what_would_change_the_meaning_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        translated(**fields)


def test_disjoint_figures_become_inclusive() -> None:
    usage: JsonObject = {
        "input_tokens": 3,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 5,
        "output_tokens": 6,
    }
    answer = completion_of({"id": "m", "model": "claude", "content": [], "stop_reason": "max_tokens", "usage": usage})
    assert answer["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 6,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
    }

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_svc.dialects import Dialect, Size
from gateway_svc.dialects.messages import CLIENT_TOOL_TOKENS, limited, parse, size
from mesh.errors import InvalidArgument

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk=" * 1_000}}
FUNCTION = {"name": "f", "input_schema": {"type": "object"}}
DAY, HOUR = {"type": "ephemeral", "ttl": "1d"}, {"type": "ephemeral", "ttl": "1h"}


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "claude", "messages": [{"role": "user", "content": "hi"}], **fields})


def said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def sized(**fields: Any) -> Size:
    return size(parse(body(**fields)).document)


def test_a_request_is_read() -> None:
    request = parse(
        body(max_tokens=50, stream=True, metadata={"user_id": "u"}, tools=[FUNCTION, {"type": "bash_20250124"}])
    )
    assert (request.dialect, request.model, request.stream, request.usage_wanted) == (
        Dialect.MESSAGES,
        "claude",
        True,
        True,
    )
    assert (request.max_tokens, request.output_tokens_least, request.tools) == (50, 1, ("f", "bash"))
    assert request.end_user == "u"


def test_the_limit_may_be_left_to_the_gateway() -> None:
    assert parse(body()).max_tokens is None


def test_a_thinking_budget_is_the_least_limit_that_makes_sense() -> None:
    assert parse(body(thinking={"type": "enabled", "budget_tokens": 2_048})).output_tokens_least == 2_049


@pytest.mark.parametrize("kind", ["adaptive", "disabled", "between_tools"])
def test_thinking_without_a_budget_asks_for_no_least(kind: str) -> None:
    assert parse(body(thinking={"type": kind})).output_tokens_least == 1


def test_our_limit_and_model_go_upstream_and_nothing_else_changes() -> None:
    request = parse(body(max_tokens=50, top_k=3))
    assert limited(request, "claude-x", 7) == {**request.document, "model": "claude-x", "max_tokens": 7}
    assert request.document["max_tokens"] == 50


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (said("hi"), "messages[0].content[0]"),
        (said({"text": "hi"}), "messages[0].content[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}, "max_tokens": 50}, "thinking.budget_tokens"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"name": 3}]}, "tools[0].name"),
        ({"metadata": {"user_id": 3}}, "metadata.user_id"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [FUNCTION, {"type": "code_execution_20250825", "name": "code_execution"}]}, "tools[1]"),
        ({"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}, "tools[0]"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "m"}]}, "tools[0]"),
        ({"tools": [{**FUNCTION, "cache_control": DAY}]}, "tools[0].cache_control.ttl"),
        ({"system": [{"type": "text", "text": "s", "cache_control": DAY}]}, "system[0].cache_control.ttl"),
        (said({"type": "text", "text": "s", "cache_control": DAY}), "messages[0].content[0].cache_control.ttl"),
        (
            said({"type": "tool_result", "content": [{"type": "text", "text": "s", "cache_control": DAY}]}),
            "messages[0].content[0].content[0].cache_control.ttl",
        ),
        ({"cache_control": DAY}, "cache_control.ttl"),
        ({"cache_control": HOUR}, "cache_control.ttl"),
        ({"tools": [{**FUNCTION, "cache_control": HOUR}]}, "tools[0].cache_control.ttl"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"context_management": {}}, "context_management"),
        ({"fallbacks": [{"model": "dearer"}]}, "fallbacks"),
        (
            said({"type": "image", "source": {"type": "base64", "data": "A", "content": [IMAGE]}}),
            "messages[0].content[0].source.content",
        ),
    ],
)
def test_what_no_price_covers_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNPRICED_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"thread": {"id": "t"}}, "thread"),
        ({"diagnostics": {"previous_message_id": "m"}}, "diagnostics"),
        (said({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages[0].content[0].source"),
        (said({"type": "container_upload", "file_id": "f"}), "messages[0].content[0]"),
        (
            said(
                {
                    "type": "tool_result",
                    "content": [
                        {
                            "type": "document",
                            "source": {
                                "type": "content",
                                "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
                            },
                        }
                    ],
                }
            ),
            "messages[0].content[0].content[0].source.content[0].source",
        ),
    ],
)
def test_what_the_vendor_keeps_is_out_of_reach(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNSUPPORTED_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "is_bounded"),
    [
        ({}, True),
        ({"system": "s", "tools": [FUNCTION], "stop_sequences": ["x"], "top_k": 1, "cache_control": None}, True),
        ({"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}}}, True),
        (said(IMAGE, {"type": "tool_result", "content": [IMAGE]}), True),
        ({"tools": [{"type": "computer_20251124", "name": "computer"}]}, True),
        ({"tools": [{"type": "computer_toolset_20260801"}]}, False),
        ({"output_config": {"unheard_of": 1}}, False),
        ({"unheard_of": 1}, False),
        (said({"type": "document", "source": {"type": "text", "data": "d"}}), False),
        (said({"type": "tool_result", "content": [{"type": "search_result", "content": []}]}), False),
        (said({"type": "unheard_of"}), False),
    ],
)
def test_only_what_is_known_is_bounded(fields: dict[str, Any], *, is_bounded: bool) -> None:
    assert sized(**fields).bounded is is_bounded


def test_images_are_counted_and_their_bytes_are_not() -> None:
    found = sized(**said(IMAGE, {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}))
    assert found.images == 2
    assert found.tokens < 500


def test_a_tool_that_the_caller_runs_adds_what_its_vendor_writes_about_it() -> None:
    tool = {"type": "bash_20250124", "name": "bash"}
    assert sized(tools=[tool]).tokens - sized(tools=[{**tool, "type": "custom"}]).tokens > (CLIENT_TOOL_TOKENS - 20)


@pytest.mark.parametrize(
    "fields", [{"system": "🦊" * 100}, {"stop_sequences": ["🦊" * 100]}, said({"type": "text", "text": "🦊" * 100})]
)
def test_every_byte_of_text_is_a_token_at_most(fields: dict[str, Any]) -> None:
    assert sized(**fields).tokens >= 400


def test_the_bytes_of_texts_are_told_for_the_mock_models() -> None:
    assert sized(system="éé", **said({"type": "text", "text": "abc"})).text_bytes == 7


def test_a_system_prompt_brings_no_prompt_of_the_vendor() -> None:
    assert sized(system="s").foreign_tokens == 0
    assert sized(tools=[FUNCTION]).foreign_tokens > 0

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from gateway_svc.dialects import Dialect, Size
from gateway_svc.dialects.responses import FIELDS, ITEM_TOKENS, ITEMS_MAX, limited, parse, size
from mesh.errors import InvalidArgument

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
GRAMMAR = {"type": "custom", "name": "c", "format": {"type": "text"}}
IMAGE = {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64," + "a" * 10_000}
HALF_DAY = {"mode": "explicit", "ttl": "12h"}
ENCRYPTED = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "opaque"}


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "gpt", "input": "hi", **fields})


def said(*parts: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


def sized(**fields: Any) -> Size:
    return size(parse(body(**fields)).document)


def test_every_field_of_the_reference_has_a_class() -> None:
    assert (ResponseCreateParamsBase.__annotations__.keys() | {"stream"}) - FIELDS.keys() == set()


def test_a_request_is_read() -> None:
    namespace = {"type": "namespace", "name": "n", "description": "d", "tools": [{**FUNCTION, "name": "g"}]}
    request = parse(body(max_output_tokens=50, stream=True, user="u", tools=[FUNCTION, GRAMMAR, namespace]))
    assert (request.dialect, request.model, request.stream) == (Dialect.RESPONSES, "gpt", True)
    assert (request.max_tokens, request.choices, request.usage_wanted) == (50, 1, True)
    assert (request.tools, request.end_user) == (("f", "c", "g"), "u")


def test_our_limit_goes_upstream_and_nothing_is_kept_there() -> None:
    request = parse(body(max_output_tokens=50, temperature=1))
    expected = {**request.document, "model": "other", "max_output_tokens": 7, "store": False}
    assert limited(request, "other", 7) == expected
    assert request.document["max_output_tokens"] == 50


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": 3}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"role": "user", "content": "hi"}] * (ITEMS_MAX + 1)}, "input"),
        (said("hi"), "input[0].content[0]"),
        ({"instructions": ["hi"]}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": 1}, "stream"),
        ({"store": 1}, "store"),
        ({"reasoning": "hard"}, "reasoning"),
        ({"prompt_cache_options": 3}, "prompt_cache_options"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function", "name": 3}]}, "tools[0].name"),
        ({"user": 3}, "user"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("INVALID_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [FUNCTION, {"type": "mcp", "server_url": "https://x"}]}, "tools[1]"),
        ({"tools": [{"type": []}]}, "tools[0]"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "code_interpreter"}]}]}, "tools[0].tools[0]"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "omni"}}, "moderation"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"prompt_cache_options": {"ttl": "12h"}}, "prompt_cache_options.ttl"),
        (
            said({"type": "input_text", "text": "a", "prompt_cache_breakpoint": HALF_DAY}),
            "input[0].content[0].prompt_cache_breakpoint.ttl",
        ),
        (said({"type": "input_audio", "input_audio": {}}), "input[0].content[0]"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
    ],
)
def test_what_no_price_covers_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNPRICED_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"prompt_cache_options": {"comparison_response_id": "resp_1"}}, "prompt_cache_options.comparison_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}]}]}, "input[0]"),
        ({"input": [{"type": "computer_call_output", "output": {"file_id": "f"}}]}, "input[0]"),
        ({"input": [{"type": "compaction_trigger"}]}, "input[0]"),
        ({"input": [{"type": ["message"]}]}, "input[0]"),
        (said({"type": "input_image", "file_id": "f"}), "input[0].content[0].file_id"),
        (
            {"input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].output[0].file_id",
        ),
    ],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body(**fields))
    assert (caught.value.reason, caught.value.details["field"]) == ("UNSUPPORTED_FIELD", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "background": False, "previous_response_id": None, "prompt_cache_options": {"ttl": "30m"}},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low", "summary": "auto"}},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a"}]}]},
    ],
)
def test_what_costs_no_more_than_its_bytes_is_bounded(fields: dict[str, Any]) -> None:
    assert sized(**fields).bounded


@pytest.mark.parametrize(
    "fields",
    [
        {"some_new_field": 1},
        {"input": [ENCRYPTED]},
        said({"type": "input_file", "file_data": "data:application/pdf;base64,aa"}),
        said({"type": "brand_new"}),
        said({"type": ["text"]}),
    ],
)
def test_what_may_be_more_than_its_bytes_is_not(fields: dict[str, Any]) -> None:
    assert not sized(**fields).bounded


@given(st.lists(st.text(), min_size=1, max_size=5), st.text())
def test_the_bound_is_never_below_the_bytes_of_the_texts(texts: list[str], instructions: str) -> None:
    found = sized(input=[{"role": "user", "content": text} for text in texts], instructions=instructions)
    assert found.text_bytes == sum(len(text.encode(errors="replace")) for text in [*texts, instructions])
    assert found.tokens >= found.text_bytes + ITEM_TOKENS * len(texts)


def test_an_image_counts_as_one_and_its_address_not_at_all() -> None:
    found = sized(input=[{"type": "function_call_output", "call_id": "c", "output": [IMAGE, IMAGE]}])
    assert (found.images, found.tokens < 1_000) == (2, True)
    stuffed = sized(**said({**IMAGE, "text": "b" * 5_000}))
    assert stuffed.tokens >= 5_000


def test_what_a_tool_returned_is_text() -> None:
    outputs = [{"type": "function_call_output", "call_id": "c", "output": "a" * 40}]
    assert sized(input=outputs).text_bytes == 40

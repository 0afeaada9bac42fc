from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_svc.dialects import Dialect, Request, responses
from gateway_svc.translations.messages_over_chat import IMAGES_FOLLOW
from gateway_svc.translations.registry import between
from gateway_svc.translations.responses_over_chat import ResponsesOverChat
from mesh.errors import InvalidArgument

OVER_CHAT = ResponsesOverChat()
PIXEL = "data:image/png;base64,aGk="
FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
OTHER = {"type": "function", "name": "g", "parameters": {}}
CUSTOM = {
    "type": "custom",
    "name": "c",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"},
}
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}


def request(**fields: Any) -> Request:
    return responses.parse(orjson.dumps({"model": "gpt", "input": "hi", **fields}))


def translated(**fields: Any) -> dict[str, Any]:
    return dict(OVER_CHAT.request(request(**fields)).document)


def messages(*items: dict[str, Any], **fields: Any) -> list[Any]:
    return list(translated(input=list(items), **fields)["messages"])


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": "f", "arguments": arguments}


def output(call_id: str, told: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": told}


def called(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [part]}


def test_a_conversation_with_tools_keeps_its_turns() -> None:
    found = messages(
        {"role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "detail": "high", "image_url": PIXEL},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        said("I call"),
        call("c1", '{"a":1}'),
        call("c2"),
        output("c1", [{"type": "input_text", "text": "one"}, {"type": "input_image", "image_url": PIXEL}]),
        output("c2", "two"),
        {"role": "user", "content": "go on"},
        instructions="be kind",
    )
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    assert found == [
        {"role": "system", "content": "be kind\n\nbe brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}},
            ],
        },
        {"role": "assistant", "content": "I call", "tool_calls": [called("c1", '{"a":1}'), called("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": IMAGES_FOLLOW}, image]},
        {"role": "user", "content": "go on"},
    ]


def test_calls_with_nothing_said_have_no_content() -> None:
    assert messages(call("c1"))[0] == {"role": "assistant", "content": None, "tool_calls": [called("c1")]}


def test_what_is_said_between_calls_stays_in_one_message() -> None:
    assert messages(call("c1"), said("a"), call("c2"), said("b")) == [
        {"role": "assistant", "content": "a\n\nb", "tool_calls": [called("c1"), called("c2")]}
    ]


def test_a_refusal_is_given_back_as_one() -> None:
    refused = {**said(""), "content": [{"type": "refusal", "refusal": "no"}]}
    assert messages(refused)[0] == {"role": "assistant", "content": None, "refusal": "no"}


def test_calls_of_custom_tools_keep_their_kind() -> None:
    found = messages(
        {"type": "custom_tool_call", "call_id": "c1", "name": "c", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "y"},
    )
    assert found[0]["tool_calls"] == [{"id": "c1", "type": "custom", "custom": {"name": "c", "input": "x"}}]
    assert found[1] == {"role": "tool", "tool_call_id": "c1", "content": "y"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        (
            {"prompt_cache_options": {"mode": "explicit", "prewarm": False}},
            {"prompt_cache_options": {"mode": "explicit"}},
        ),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}},
            {
                "tools": [{"type": "function", "function": {k: v for k, v in FUNCTION.items() if k != "type"}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        (
            {"tools": [CUSTOM], "tool_choice": {"type": "custom", "name": "c"}},
            {
                "tools": [
                    {
                        "type": "custom",
                        "custom": {
                            "name": "c",
                            "format": {"type": "grammar", "grammar": {"definition": "start: X", "syntax": "lark"}},
                        },
                    }
                ],
                "tool_choice": {"type": "custom", "custom": {"name": "c"}},
            },
        ),
        (
            {
                "tools": [FUNCTION, OTHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "g"}],
                },
            },
            {
                "tools": [{"type": "function", "function": {"name": "g", "parameters": {}}}],
                "tool_choice": "required",
            },
        ),
        *(
            ({name: value}, {name: value})
            for name, value in {
                "temperature": 0.5,
                "top_p": 0.5,
                "parallel_tool_calls": False,
                "service_tier": "flex",
                "user": "u",
                "safety_identifier": "s",
                "prompt_cache_key": "k",
                "prompt_cache_retention": "24h",
            }.items()
        ),
    ],
)
def test_fields_find_their_place(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}
    assert translated(**fields) == {**plain, **expected}


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"client_metadata": {"a": "b"}},
        {"max_tool_calls": 3},
        {"store": False, "truncation": "disabled", "background": False, "top_logprobs": 0},
        {"include": ["reasoning.encrypted_content", "web_search_call.results"]},
        {"reasoning": {"summary": "detailed", "context": "auto", "mode": "standard"}},
        {"text": {"format": {"type": "text"}}},
        {"tools": [], "tool_choice": "auto"},
        {"stream_options": {"include_obfuscation": False}},
        {"input": [{"type": "message", "role": "user", "content": "hi", "id": "msg_1", "status": "completed"}]},
    ],
)
def test_what_changes_no_answer_adds_nothing(fields: dict[str, Any]) -> None:
    assert translated(**fields) == {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}


def item(**members: Any) -> dict[str, Any]:
    return {"input": [members]}


def part(**members: Any) -> dict[str, Any]:
    return item(role="user", content=[members])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"some_new_field": 1}, "some_new_field"),
        ({"truncation": "auto"}, "truncation"),
        ({"image": {"context_compression": "enabled"}}, "image"),
        ({"include": ["brand.new"]}, "include[0]"),
        ({"include": [["brand.new"]]}, "include[0]"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
        ({"text": {"format": {**SCHEMA, "more": 1}}}, "text.format.more"),
        ({"text": {"tone": "dry"}}, "text.tone"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION]}]}, "tools[0]"),
        ({"tools": [FUNCTION, {**FUNCTION, "defer_loading": True}]}, "tools[1].defer_loading"),
        ({"tools": [{**FUNCTION, "output_schema": {}}]}, "tools[0].output_schema"),
        ({"tools": [{**CUSTOM, "format": {"type": "regex"}}]}, "tools[0].format"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        (item(type="reasoning", summary=[], encrypted_content="x"), "input[0].encrypted_content"),
        (item(**{**call("c"), "namespace": "n"}), "input[0].namespace"),
        (item(**{**call("c"), "caller": {"type": "program", "caller_id": "p"}}), "input[0].caller"),
        (item(role="user", content="hi", mood="glad"), "input[0].mood"),
        (part(type="input_file", file_url="https://x/y.pdf"), "input[0].content[0]"),
        (part(type="brand_new"), "input[0].content[0]"),
        (part(type="input_image", image_url=PIXEL, crop=1), "input[0].content[0].crop"),
        (item(role="system", content=[{"type": "input_image", "image_url": PIXEL}]), "input[0].content[0]"),
        (
            item(role="assistant", content=[{"type": "output_text", "text": "a", "annotations": [1]}]),
            "input[0].content[0].annotations",
        ),
        (item(**output("c", [{"type": "input_file", "file_data": "x"}])), "input[0].output[0]"),
    ],
)
def test_what_has_no_place_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translated(**fields)
    assert (caught.value.reason, caught.value.details["field"]) == ("UNTRANSLATABLE_FIELD", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [OTHER]}},
            "tool_choice.tools",
        ),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [3]}},
            "tool_choice.tools",
        ),
        (item(type="function_call", name="f", arguments="{}"), "input[0].call_id"),
        (item(type="function_call", call_id="c", name="f", arguments={}), "input[0].arguments"),
        (item(type="function_call_output", call_id="c"), "input[0].output"),
        (item(type="function_call_output", output="x"), "input[0].call_id"),
        (item(role="user"), "input[0].content"),
        (item(role="tool", content="x"), "input[0].role"),
        (part(type="input_image"), "input[0].content[0].image_url"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        translated(**fields)
    assert (caught.value.reason, caught.value.details["field"]) == ("INVALID_FIELD", field)


def test_the_request_becomes_one_of_chat_with_the_clients_limit_and_end_user() -> None:
    far = OVER_CHAT.request(request(max_output_tokens=50, user="u", stream=True, tools=[FUNCTION]))
    assert (far.dialect, far.max_tokens, far.end_user, far.stream) == (Dialect.CHAT, 50, "u", True)
    assert (far.usage_wanted, far.tools) == (True, ("f",))


def test_a_request_reaches_models_of_messages_over_chat() -> None:
    over_messages = between(Dialect.RESPONSES, Dialect.MESSAGES)
    assert over_messages is not None
    far = over_messages.request(
        request(
            input=[{"role": "user", "content": "hi"}, call("c1", '{"a":1}'), output("c1", "one")],
            instructions="be kind",
            tools=[FUNCTION],
            prompt_cache_key="k",
            include=["reasoning.encrypted_content"],
            max_output_tokens=50,
        )
    )
    assert (far.dialect, far.max_tokens, far.document["system"]) == (Dialect.MESSAGES, 50, "be kind")
    turns = far.document["messages"]
    assert isinstance(turns, list)
    assert [turn["role"] for turn in turns if isinstance(turn, dict)] == ["user", "assistant", "user"]


TURNS = st.lists(
    st.one_of(
        st.builds(said, st.text(min_size=1)),
        st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}),
        st.builds(call, st.text(min_size=1, max_size=3), st.text()),
        st.builds(output, st.text(min_size=1, max_size=3), st.text()),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(TURNS)
def test_no_text_and_no_call_of_a_conversation_is_lost(items: list[dict[str, Any]]) -> None:
    found = messages(*items)
    texts = [it["content"][0]["text"] for it in items if it.get("role") == "assistant"]
    spoken = "\n\n".join(
        message["content"] for message in found if message["role"] == "assistant" and message["content"]
    )
    assert spoken == "\n\n".join(texts)
    calls = [made for message in found for made in message.get("tool_calls", [])]
    assert [(made["id"], made["function"]["arguments"]) for made in calls] == [
        (it["call_id"], it["arguments"]) for it in items if it.get("type") == "function_call"
    ]
    results = [(message["tool_call_id"], message["content"]) for message in found if message["role"] == "tool"]
    assert results == [(it["call_id"], it["output"]) for it in items if it.get("type") == "function_call_output"]
    users = [message["content"] for message in found if message["role"] == "user"]
    assert users == [it["content"] for it in items if it.get("role") == "user"]

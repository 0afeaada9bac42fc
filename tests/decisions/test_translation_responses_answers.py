from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway_svc import sse
from gateway_svc.dialects import Dialect, Request, responses
from gateway_svc.dialects.reading import Json
from gateway_svc.translations import responses_over_chat_stream as streaming
from gateway_svc.translations.registry import between
from gateway_svc.translations.responses_over_chat import ResponsesOverChat

OVER_CHAT = ResponsesOverChat()
USAGE: dict[str, Any] = {
    "prompt_tokens": 10,
    "completion_tokens": 9,
    "total_tokens": 19,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 5},
}
TOLD_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 19,
}
HEAD: dict[str, Any] = {"id": "chatcmpl-a.b", "created": 7, "model": "gpt-x"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "c", "input": "raw"}}
LOGPROB = {
    "token": "Hi",
    "logprob": -0.5,
    "bytes": None,
    "top_logprobs": [{"token": "Yo", "logprob": -2, "bytes": [89]}],
}
TOLD_LOGPROB = {**LOGPROB, "bytes": [], "top_logprobs": [{"token": "Yo", "logprob": -2, "bytes": [89]}]}
EVENT = TypeAdapter[Any](ResponseStreamEvent)


def request(**fields: Any) -> Request:
    return responses.parse(orjson.dumps({"model": "gpt", "input": "hi", **fields}))


def answer(said: dict[str, Any], finish: Json = "stop", **fields: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"message": said, "finish_reason": finish}], "usage": USAGE, **fields}


def whole(said: dict[str, Any], finish: Json = "stop", asked: Request | None = None) -> dict[str, Any]:
    found: dict[str, Any] = dict(OVER_CHAT.answer(answer(said, finish), asked or request()))
    Response.model_validate(found)
    return found


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **choice: Any) -> bytes:
    told = {"index": 0, "delta": delta or {}, "finish_reason": finish, **choice}
    return sse.event(orjson.dumps({**HEAD, "choices": [told]}))


USED = sse.event(orjson.dumps({**HEAD, "choices": [], "usage": USAGE}))


def part(index: int, call_id: str | None = None, name: str | None = None, arguments: str = "") -> bytes:
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if call_id is not None:
        call |= {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [call]})


def told(stream: bytes, asked: Request | None = None, kept: bytes = USED) -> list[dict[str, Any]]:
    """Return the data of each event, of which the names are the types and the numbers have no gap."""
    translation = OVER_CHAT.stream(asked or request(stream=True))
    events = sse.Splitter().feed(translation.take(stream)) + translation.end([kept] if kept else [])
    found = [orjson.loads(sse.data_of(event)) for event in events]
    assert [sse.name_of(event) for event in events] == [data["type"] for data in found]
    assert [data["sequence_number"] for data in found] == list(range(len(events)))
    for data in found:
        EVENT.validate_python(data)
    return found


def final(stream: bytes, asked: Request | None = None) -> dict[str, Any]:
    return dict(told(stream, asked)[-1]["response"])


def test_an_answer_is_a_response() -> None:
    found = whole({"content": "Hi", "reasoning_content": "hm", "refusal": "no", "tool_calls": [CALL, CUSTOM]})
    assert (found["id"], found["object"], found["created_at"], found["model"]) == ("resp_ab", "response", 7, "gpt-x")
    assert (found["status"], found["error"], found["incomplete_details"]) == ("completed", None, None)
    assert found["usage"] == TOLD_USAGE
    assert found["output"] == [
        {
            "id": "rs_ab_0",
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "status": "completed",
        },
        {
            "id": "msg_ab_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        {
            "id": "fc_ab_2",
            "type": "function_call",
            "call_id": "c1",
            "name": "f",
            "arguments": '{"a":1}',
            "status": "completed",
        },
        {"id": "ctc_ab_3", "type": "custom_tool_call", "call_id": "c2", "name": "c", "input": "raw"},
    ]


def test_the_request_is_told_back() -> None:
    tool = {"type": "function", "name": "f"}
    asked = {
        "instructions": "be kind",
        "metadata": {"a": "b"},
        "max_output_tokens": 5,
        "tools": [tool],
        "tool_choice": "required",
        "temperature": 0.5,
        "parallel_tool_calls": False,
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "low"},
    }
    found = whole({"content": "Hi"}, asked=request(**asked))
    assert found["tools"] == [{**tool, "parameters": None, "strict": None}]
    assert found["text"] == {"verbosity": "low", "format": {"type": "text"}}
    assert found["reasoning"] == {"effort": "low", "summary": None}
    names = asked.keys() - {"tools", "text", "reasoning"}
    assert {name: found[name] for name in names} == {name: asked[name] for name in names}


def test_thought_is_a_summary_where_one_was_asked_for() -> None:
    found = whole({"reasoning": "hm", "content": None}, asked=request(reasoning={"summary": "auto"}))
    assert found["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert "content" not in found["output"][0]


@pytest.mark.parametrize(
    ("finish", "status", "details"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
        (None, "completed", None),
        (["length"], "completed", None),
    ],
)
def test_the_reason_to_stop_is_a_status(finish: Json, status: str, details: Any) -> None:
    found = whole({"content": "Hi", "tool_calls": [CALL]}, finish)
    assert (found["status"], found["incomplete_details"]) == (status, details)
    assert [item["status"] for item in found["output"]] == ["completed", status]


def test_probabilities_are_told_with_bytes_that_are_a_list() -> None:
    choice: Any = {"message": {"content": "Hi"}, "finish_reason": "stop", "logprobs": {"content": [LOGPROB]}}
    found = OVER_CHAT.answer({**HEAD, "choices": [choice]}, request())
    output: Any = found["output"]
    assert output[0]["content"][0]["logprobs"] == [TOLD_LOGPROB]
    assert found["usage"] is None


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{}]}, answer({"content": [{"type": "text"}]})])
def test_what_is_no_answer_is_told_apart(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="answer"):
        OVER_CHAT.answer(body, request())


def test_ids_of_any_provider_are_made_ones_that_openai_takes_back() -> None:
    found = OVER_CHAT.answer({**answer({"content": "Hi"}), "id": "gen/é:" + "x" * 200}, request())
    output: Any = found["output"]
    assert re.fullmatch(r"msg_genx{37}_0", output[0]["id"])


def test_a_stream_is_told_event_by_event() -> None:
    stream = chunk({"role": "assistant", "content": ""}) + chunk({"reasoning_content": "hm"})
    stream += chunk({"content": "H"}, logprobs={"content": [LOGPROB]}) + chunk({"content": "i"})
    stream += part(0, "c1", "f") + part(0, arguments='{"a"') + part(0, arguments=":1}") + chunk(finish="tool_calls")
    found = told(stream)
    assert [data["type"].removeprefix("response.") for data in found] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert [data.get("output_index") for data in found] == [None] * 2 + [0] * 6 + [1] * 7 + [2] * 5 + [None]
    assert found[0]["response"]["status"] == "in_progress"
    assert (found[10]["logprobs"], found[11]["logprobs"], found[12]["logprobs"]) == (
        [TOLD_LOGPROB],
        [],
        [TOLD_LOGPROB],
    )
    assert (found[-1]["response"]["status"], found[-1]["response"]["usage"]) == ("completed", TOLD_USAGE)
    assert found[-1]["response"]["output"] == [data["item"] for data in found if data["type"].endswith("item.done")]


def test_summaries_and_custom_calls_have_events_of_their_own() -> None:
    custom = chunk({"tool_calls": [{"index": 0, **CUSTOM}]}) + chunk(
        {"tool_calls": [{"index": 0, "custom": {"input": "er"}}]}
    )
    found = told(chunk({"reasoning": "hm"}) + custom, request(reasoning={"summary": "auto"}))
    assert [data["type"].removeprefix("response.") for data in found[2:-1]] == [
        *("output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.delta"),
        *("custom_tool_call_input.done", "output_item.done"),
    ]
    assert found[-2]["item"]["input"] == "rawer"


def test_parallel_calls_may_be_told_in_turns() -> None:
    stream = part(0, "c1", "f") + part(1, "c2", "g", "{") + part(0, arguments='{"a":1}') + part(1, arguments="}")
    output = final(stream + chunk(finish="tool_calls"))["output"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output] == [
        ("c1", "f", '{"a":1}'),
        ("c2", "g", "{}"),
    ]


def test_calls_that_all_have_the_index_0_are_told_apart_by_their_ids() -> None:
    stream = part(0, "c1", "f", "{}") + part(0, "c2", "g", "{}")
    assert [item["call_id"] for item in final(stream)["output"]] == ["c1", "c2"]


def test_a_call_whose_arguments_are_whole_is_done_when_the_next_begins() -> None:
    found = told(part(0, "c1", "f", "{}") + part(1, "c2", "g", "{}"))
    kinds = [data["type"].removeprefix("response.output_item.") for data in found if "output_item" in data["type"]]
    assert kinds == ["added", "done", "added", "done"]


def test_what_is_cut_is_told_as_incomplete() -> None:
    found = told(chunk({"content": "Hi"}) + part(0, "c1", "f", '{"a"') + chunk(finish="length"))
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in found[-1]["response"]["output"]] == ["completed", "incomplete"]


def test_usage_is_null_where_the_provider_told_none() -> None:
    assert told(chunk({"content": "Hi"}, "stop"), kept=b"")[-1]["response"]["usage"] is None


def test_a_stream_of_nothing_is_a_response_all_the_same() -> None:
    assert [data["type"] for data in told(b"", kept=b"")] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]


@pytest.mark.parametrize("stream", [sse.event(b"{}"), sse.event(b"{"), sse.event(b'{"choices":null}')])
def test_what_is_no_stream_of_chat_is_told_apart(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|unexpected|expected"):
        OVER_CHAT.stream(request()).take(stream)


def test_a_call_that_was_complete_is_not_added_to() -> None:
    with pytest.raises(ValueError, match="complete"):
        OVER_CHAT.stream(request()).take(
            part(0, "c1", "f", "{}") + part(1, "c2", "g") + part(0, arguments='{"more":1}')
        )


def test_an_answer_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WRITTEN_CHARACTERS_MAX", 8)
    with pytest.raises(ValueError, match="longer"):
        OVER_CHAT.stream(request()).take(chunk({"content": "a" * 5}) * 2)


def test_models_of_messages_answer_in_a_response_too() -> None:
    over_messages = between(Dialect.RESPONSES, Dialect.MESSAGES)
    assert over_messages is not None
    usage = {"input_tokens": 3, "output_tokens": 2}
    content = [{"type": "text", "text": "Hi"}]
    said: Any = {"id": "msg_1", "model": "claude", "content": content, "stop_reason": "end_turn", "usage": usage}
    asked = request(model="claude")
    answered: Any = over_messages.answer(said, asked)
    assert answered["output"][0]["content"][0]["text"] == "Hi"
    stream = over_messages.stream(asked)
    kinds: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**said, "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    events = [b"event: " + kind["type"].encode() + b"\n" + sse.event(orjson.dumps(kind)) for kind in kinds]
    stream.take(b"".join(events[:4]))
    last = orjson.loads(sse.data_of(stream.end(events[4:])[-1]))
    assert last["response"]["output"] == answered["output"]
    assert last["response"]["usage"] == answered["usage"]


TEXT = st.text(max_size=12)
ANSWERS = st.fixed_dictionaries(
    {
        "reasoning_content": TEXT,
        "content": TEXT,
        "refusal": TEXT,
        "arguments": st.lists(st.dictionaries(TEXT, st.integers(-9, 9), max_size=2), max_size=3),
        "finish": st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
        "cuts": st.lists(st.integers(0, 30), max_size=4),
        "summary": st.booleans(),
    }
)


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def streamed(wanted: dict[str, Any], calls: list[dict[str, Any]]) -> list[bytes]:
    chunks = [
        chunk({name: piece})
        for name in ("reasoning_content", "content", "refusal")
        for piece in pieces(wanted[name], wanted["cuts"])
    ]
    for index, call in enumerate(calls):
        chunks.append(part(index, call["id"], call["function"]["name"]))
        chunks += [part(index, arguments=piece) for piece in pieces(call["function"]["arguments"], wanted["cuts"])]
    return [*chunks, chunk(finish=wanted["finish"])]


@settings(deadline=None)
@given(ANSWERS, st.lists(st.integers(0, 50), max_size=4))
def test_a_stream_ends_in_the_response_that_a_whole_answer_is(wanted: dict[str, Any], groups: list[int]) -> None:
    calls = [
        {"id": f"c{index}", "type": "function", "function": {"name": "f", "arguments": orjson.dumps(given).decode()}}
        for index, given in enumerate(wanted["arguments"])
    ]
    asked = request(reasoning={"summary": "auto"} if wanted["summary"] else None)
    said = {name: wanted[name] for name in ("reasoning_content", "content", "refusal")}
    expected = whole({**said, "tool_calls": calls}, wanted["finish"], asked)
    chunks = streamed(wanted, calls)
    found = told(b"".join(chunks), asked)
    assert found[-1]["response"] == expected

    apart = OVER_CHAT.stream(asked)
    edges = [0, *sorted(cut % (len(chunks) + 1) for cut in groups), len(chunks)]
    given_on = b"".join(apart.take(b"".join(chunks[start:end])) for start, end in pairwise(edges))
    events = sse.Splitter().feed(given_on + b"".join(apart.end([USED])))
    assert [orjson.loads(sse.data_of(event)) for event in events] == found


@settings(deadline=None)
@given(ANSWERS)
def test_openais_own_client_puts_the_stream_together(wanted: dict[str, Any]) -> None:
    asked = request(reasoning={"summary": "auto"} if wanted["summary"] else None)
    state = ResponseStreamState[Any](input_tools=omit, text_format=omit)
    seen: list[Any] = [
        found
        for data in told(b"".join(streamed({**wanted, "finish": "stop"}, [CALL])), asked)
        for found in state.handle_event(EVENT.validate_python(data))
    ]
    snapshots = {found.type: found.snapshot for found in seen if hasattr(found, "snapshot")}
    assert snapshots.get("response.output_text.delta", "") == wanted["content"]
    assert snapshots["response.function_call_arguments.delta"] == '{"a":1}'
    assert seen[-1].response.output_text == wanted["content"]

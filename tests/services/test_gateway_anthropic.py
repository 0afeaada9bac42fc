from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from mesh.secret import Secret
from tests.services.gateway_running import (
    Mesh,
    RunningGateway,
    Tenant,
    Upstream,
    gateway_running,
)

KEY = "sk-ant-0123456789"
ASK: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}],
    "max_tokens": 64,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "tells it", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
async def gateway(
    mesh: Mesh, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    settings: dict[str, Any] = {"anthropic_api_key": Secret(KEY), "anthropic_base_url": upstream.url}
    async with gateway_running(mesh, folder, **settings) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(1_000_000_000)


async def test_a_chat_becomes_a_message_and_its_answer_a_completion(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": "fake:cached=1"})
    assert answer.status == 200, answer.body
    choice = answer.json["choices"][0]
    assert (choice["message"]["content"].split()[0], choice["finish_reason"]) == ("word0", "stop")
    billed = upstream.billed(answer.headers["x-request-id"])
    assert billed["body"]["system"] == "be brief"
    assert billed["body"]["max_tokens"] == 64
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (2, 1, 8)
    assert row.provider == "anthropic"


async def test_a_stream_of_messages_is_a_stream_of_chunks(gateway: RunningGateway, tenant: Tenant) -> None:
    async with AsyncOpenAI(api_key=tenant.key, base_url=f"{gateway.url}/v1", max_retries=0) as client:
        stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.split() == [f"word{number}" for number in range(8)]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 8)


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_come_through(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant, *, stream: bool
) -> None:
    body = {**ASK, "tools": [TOOL], "tool_choice": "required", "stream": stream}
    answer = await gateway.ask(tenant, body)
    sent = upstream.billed(answer.headers["x-request-id"])["body"]
    assert sent["tool_choice"] == {"type": "any"}
    assert sent["tools"] == [{"name": "weather", "description": "tells it", "input_schema": {"type": "object"}}]
    if stream:
        chunks = [json.loads(event.removeprefix("data: ")) for event in answer.events if event.startswith("data: {")]
        deltas = [
            call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", [])
        ]
        assert (deltas[0]["id"], deltas[0]["index"]) == ("toolu_1", 0)
        arguments = "".join(call["function"]["arguments"] for call in deltas)
    else:
        choice = answer.json["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"city": "Bern"}


async def test_an_error_of_the_dialect_is_told_in_ours_without_the_key(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": "fake:status=529"})
    assert (answer.status, answer.json["error"]["type"]) == (529, "overloaded_error")
    assert KEY not in answer.body.decode()


async def test_a_stream_of_messages_that_dies_is_an_error(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, {**ASK, "stream": True, "user": "fake:die=6"})
    assert json.loads(answer.events[-1].removeprefix("data: "))["error"]["code"] == "upstream_cut"
    assert (await tenant.used(answer.headers["x-request-id"])).estimated


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ],
)
async def test_what_the_dialect_cannot_say_is_refused(
    gateway: RunningGateway, tenant: Tenant, fields: dict[str, Any], param: str
) -> None:
    answer = await gateway.ask(tenant, {**ASK, **fields})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)

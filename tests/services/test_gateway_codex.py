"""A coding agent's Responses client, as strict as those are: named events, one completed response, no [DONE]."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from mesh.secret import Secret
from tests.services.gateway_running import Answer, Mesh, RunningGateway, Tenant, Upstream, gateway_running

MODELS = ("mock-model", "gpt-6.2-sol", "claude-sonnet-5-5")
SHELL: dict[str, Any] = {
    "type": "function",
    "name": "shell",
    "strict": False,
    "parameters": {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}},
}


def turn(model: str, **changes: Any) -> dict[str, Any]:
    """Return what such an agent posts for one turn."""
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list the files"}]}
    return {
        "model": model,
        "instructions": "You are a coding agent.",
        "input": [said],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "a-conversation",
        **changes,
    }


@dataclass(frozen=True, slots=True)
class Heard:
    """A stream as the agent reads it: its items, and the completed response."""

    items: list[dict[str, Any]]
    completed: dict[str, Any]


def heard(answer: Answer) -> Heard:
    """Read a stream; whatever is not as it must be fails."""
    assert answer.status == 200, answer.body
    items: list[dict[str, Any]] = []
    completed: dict[str, Any] | None = None
    for event in answer.events:
        lines = [line for line in event.splitlines() if not line.startswith(":")]
        if not lines:
            continue
        named, data = lines
        document = json.loads(data.removeprefix("data: "))
        assert named == f"event: {document['type']}"
        assert completed is None, "an event after the end"
        if document["type"] == "response.output_item.done":
            items.append(document["item"])
        if document["type"] == "response.completed":
            completed = document["response"]
    assert completed is not None, "stream closed before response.completed"
    assert completed["id"]
    assert {"input_tokens", "output_tokens", "total_tokens"} <= set(completed["usage"])
    return Heard(items, completed)


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, upstream: Upstream, tmp_path_factory: Any) -> AsyncIterator[RunningGateway]:
    settings: dict[str, Any] = {
        "openai_api_key": Secret("sk-platform-0123456789"),
        "openai_base_url": upstream.url,
        "anthropic_api_key": Secret("sk-ant-0123456789"),
        "anthropic_base_url": upstream.url,
    }
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(10**12)


@pytest.mark.parametrize("model", MODELS)
async def test_a_turn_ends_in_one_completed_response(gateway: RunningGateway, tenant: Tenant, model: str) -> None:
    told = heard(await gateway.ask(tenant, turn(model), "/v1/responses"))
    assert [item["type"] for item in told.items] == ["message"]
    assert told.completed["x_platform"]["micro_credits_charged"] > 0


@pytest.mark.parametrize("model", MODELS[1:])
async def test_a_call_of_a_tool_and_its_output_make_a_second_turn(
    gateway: RunningGateway, tenant: Tenant, model: str
) -> None:
    first = turn(model, tools=[SHELL])
    called = heard(await gateway.ask(tenant, first, "/v1/responses")).items[-1]
    assert (called["type"], called["name"]) == ("function_call", "shell")
    given = {"type": "function_call_output", "call_id": called["call_id"], "output": "README.md"}
    second = turn(model, input=[*first["input"], called, given])
    assert heard(await gateway.ask(tenant, second, "/v1/responses")).items[-1]["type"] == "message"


@pytest.mark.parametrize("model", MODELS[1:])
@pytest.mark.parametrize("order", ["die=3", "fail=3"])
async def test_a_stream_that_breaks_off_ends_in_a_failed_response(
    gateway: RunningGateway, tenant: Tenant, model: str, order: str
) -> None:
    answer = await gateway.ask(tenant, turn(model, user=f"x:{order}"), "/v1/responses")
    assert b"response.completed" not in answer.body
    named, data = answer.events[-1].splitlines()
    assert named == "event: response.failed"
    assert json.loads(data.removeprefix("data: "))["response"]["error"]["code"]


async def test_an_empty_wallet_is_the_code_that_such_agents_take_as_final(gateway: RunningGateway, mesh: Mesh) -> None:
    poor = await mesh.tenant(0)
    answer = await gateway.ask(poor, turn("mock-model"), "/v1/responses")
    assert (answer.status, answer.code) == (402, "insufficient_quota")


async def test_a_rate_says_in_words_when_to_come_again(gateway: RunningGateway, mesh: Mesh) -> None:
    hasty = await mesh.tenant()
    await gateway.limit(hasty, hasty.family.agent_id, requests_per_minute=1)
    answers = [await gateway.ask(hasty, turn("mock-model"), "/v1/responses") for _ in range(2)]
    assert (answers[1].status, answers[1].code) == (429, "rate_limit_exceeded")
    assert "try again in " in answers[1].json["error"]["message"]

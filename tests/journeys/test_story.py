from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.journeys.running import Mesh, Tenant

pytestmark = [pytest.mark.journey, pytest.mark.timeout(180)]

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
FACTS = {
    "gateway_url",
    "graphql_url",
    "portal_url",
    "email",
    "password",
    "org_id",
    "workspace_id",
    "agent_group_id",
    "agent_id",
    "api_key",
    "client_id",
    "client_secret",
}


@pytest.fixture(scope="module")
def tenant(mesh: Mesh) -> Tenant:
    return mesh.tenant(1_000_000_000)


@pytest.fixture
async def agent(mesh: Mesh, tenant: Tenant) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{mesh.gateway_url}/v1", api_key=tenant.api_key, max_retries=0) as client:
        yield client


async def test_a_completion_tells_its_exact_price(agent: openai.AsyncOpenAI, mesh: Mesh, tenant: Tenant) -> None:
    before = mesh.wallet(tenant)["settledMicros"]
    answer = await agent.chat.completions.create(model="mock-model", messages=HELLO, max_tokens=5)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 5)
    platform: dict[str, Any] = (answer.model_extra or {})["x_platform"]
    assert platform["micro_credits_charged"] == 2 * 100 + 5 * 200
    assert platform["credits_charged"] == 0.0012
    assert platform["balance_micro_credits"] == before - 1_200 == mesh.wallet(tenant)["settledMicros"]


async def test_a_stream_with_usage_ends_in_a_chunk_that_tells_the_price(agent: openai.AsyncOpenAI) -> None:
    stream = await agent.chat.completions.create(
        model="mock-model", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    last = chunks[-1]
    assert last.usage is not None
    assert last.choices == []
    charged = 100 * last.usage.prompt_tokens + 200 * last.usage.completion_tokens
    assert (last.model_extra or {})["x_platform"]["micro_credits_charged"] == charged
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


async def test_a_stream_without_usage_shows_none_to_the_client(agent: openai.AsyncOpenAI) -> None:
    stream = await agent.chat.completions.create(model="mock-model", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason


async def test_the_models_are_listed(agent: openai.AsyncOpenAI) -> None:
    assert {"mock-model", "mock-flat"} <= {model.id async for model in agent.models.list()}


async def test_a_wrong_key_is_an_authentication_error_with_its_request_id(mesh: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=f"{mesh.gateway_url}/v1", api_key="cpk_wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.chat.completions.create(model="mock-model", messages=HELLO)
    assert refused.value.code == "invalid_api_key"
    assert str(refused.value.request_id).startswith("req_")


async def test_a_model_that_does_not_exist_is_not_found(agent: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await agent.chat.completions.create(model="no-such-model", messages=HELLO)
    assert refused.value.code == "model_not_found"


async def test_a_revoked_key_is_refused_within_a_second(mesh: Mesh) -> None:
    tenant = await asyncio.to_thread(mesh.tenant, 1_000_000)
    async with openai.AsyncOpenAI(base_url=f"{mesh.gateway_url}/v1", api_key=tenant.api_key, max_retries=0) as agent:
        await agent.chat.completions.create(model="mock-model", messages=HELLO)
        revoked = {"id": tenant.api_key_id}
        await asyncio.to_thread(
            mesh.mutate, "revokeApiKey", "RevokeApiKeyInput", revoked, "apiKey { revokeTime }", tenant.token
        )
        await asyncio.sleep(1)
        for _ in range(10):  # whichever replica of the gateway answers
            with pytest.raises(openai.AuthenticationError):
                await agent.chat.completions.create(model="mock-model", messages=HELLO)


async def test_an_empty_wallet_is_told_as_openai_tells_it(mesh: Mesh) -> None:
    tenant = await asyncio.to_thread(mesh.tenant, 0)
    async with openai.AsyncOpenAI(base_url=f"{mesh.gateway_url}/v1", api_key=tenant.api_key) as agent:
        with pytest.raises(openai.APIStatusError) as refused:
            await agent.chat.completions.create(model="mock-model", messages=HELLO)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_quota")


def test_the_demo_tells_facts_that_work_and_leaves_the_mesh_running(mesh: Mesh) -> None:
    before = mesh.status()["pid"]
    shown = mesh.run("demo", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)
    assert set(facts) == FACTS
    assert (facts["gateway_url"], facts["graphql_url"]) == (mesh.gateway_url, mesh.graphql_url)
    assert facts["client_secret"] is None
    log_in = {"email": facts["email"], "password": facts["password"]}
    token = mesh.mutate("logIn", "LogInInput", log_in, "accessToken")["accessToken"]
    query = "query($id: ID!) { agent(id: $id) { organizationId workspaceId agentGroupId } }"
    found = mesh.graphql(query, {"id": facts["agent_id"]}, token)["agent"]
    assert list(found.values()) == [facts["org_id"], facts["workspace_id"], facts["agent_group_id"]]
    headers = {"authorization": f"Bearer {facts['api_key']}"}
    body = {"model": "mock-model", "messages": HELLO}
    answer = httpx.post(f"{mesh.gateway_url}/v1/chat/completions", json=body, headers=headers, timeout=20)
    assert answer.status_code == 200
    assert mesh.status()["pid"] == before
    written = [path for path in mesh.home.rglob("*") if path.is_file() and _holds(path, facts["api_key"])]
    assert written == []


def test_a_mesh_starts_once_and_stops_whole(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path / "home")
    assert mesh.run("status").returncode == 3
    with mesh.up():
        second = mesh.run("up", "--detach")
        assert second.returncode == 1
        assert "is in use by process" in second.stderr
        found = mesh.status()
        assert found["state"] == "ready"
        ports = [port for process in found["processes"] for port in process["ports"].values() if port]
        assert mesh.run("down").returncode == 0
        assert [port for port in ports if _answers(port)] == []
        assert mesh.run("status").returncode == 3
        assert mesh.run("down").returncode == 3


def test_the_demo_starts_what_is_not_running_and_stops_it(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path / "home")
    began = time.monotonic()
    shown = mesh.run("demo")
    try:
        assert shown.returncode == 0, shown.stderr
        assert "exact to the micro-credit" in shown.stdout
        assert "cpk_" in shown.stdout
        assert mesh.run("status").returncode == 3
        assert time.monotonic() - began < 90
    finally:
        mesh.run("down", "--wipe")


def _holds(path: Path, text: str) -> bool:
    with contextlib.suppress(PermissionError):
        return text.encode() in path.read_bytes()
    return False


def _answers(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, AsyncOpenAI

from mandate.vault.v1 import credentials_pb2
from mesh import children, ids
from mesh.caller import acting
from mesh.client import call
from mesh.secret import Secret
from tests.services.gateway_running import (
    Mesh,
    RunningGateway,
    Tenant,
    Upstream,
    gateway_running,
)
from tests.services.identity_running import fresh

PLATFORM_KEY = "sk-platform-0123456789"
MODEL = "gpt-6.2-sol"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 64}
MICROS = 1_000_000_000


@pytest.fixture(scope="module")
async def gateway(
    mesh: Mesh, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("gateway")
    settings: dict[str, Any] = {"openai_api_key": Secret(PLATFORM_KEY), "openai_base_url": upstream.url}
    async with gateway_running(mesh, folder, **settings) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(MICROS)


async def test_a_call_passes_through_and_its_usage_agrees_with_the_provider(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "temperature": 0.5, "user": "u1"})
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"].startswith("word0 word1")
    billed = upstream.billed(answer.headers["x-request-id"])
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.input_tokens, row.output_tokens) == (billed["prompt_tokens"], billed["completion_tokens"]) == (3, 8)
    assert (row.outcome, row.estimated, row.http_status) == ("ok", False, 200)
    assert billed["body"]["temperature"] == 0.5


async def test_the_limit_that_the_hold_covers_is_written_upstream(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "max_tokens": None})
    body = upstream.billed(answer.headers["x-request-id"])["body"]
    assert (body["max_completion_tokens"], body.get("max_tokens")) == (4096, None)
    assert answer.headers["x-mandate-max-tokens"] == "4096"


async def test_cached_tokens_are_told_apart(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": "fake:cached=2"})
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.input_tokens, row.cached_input_tokens) == (1, 2)


async def test_a_prompt_beyond_a_vendors_step_is_charged_at_its_tier(gateway: RunningGateway, tenant: Tenant) -> None:
    prompt = {"messages": [{"role": "user", "content": "a " * 300_000}]}
    answer = await gateway.ask(tenant, {**ASK, **prompt, "model": "gpt-6-sol"})
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.input_tokens, row.output_tokens) == (300_000, 8)
    assert row.charged_micros == 300_000 * 400 + 8 * 1_500
    refused = await gateway.ask(tenant, {**ASK, **prompt})
    assert (refused.status, refused.json["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_passes_through_and_usage_is_for_those_who_ask(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant, *, asks: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if asks else {}
    answer = await gateway.ask(tenant, {**ASK, "stream": True, **options})
    request_id = answer.headers["x-request-id"]
    assert upstream.billed(request_id)["body"]["stream_options"] == {"include_usage": True}
    assert answer.events[-1] == "data: [DONE]"
    assert ('"usage":{' in answer.body.decode()) is asks
    assert (b": x_platform" in answer.body) is not asks
    row = await tenant.used(request_id)
    assert (row.input_tokens, row.output_tokens, row.streamed) == (3, 8, True)
    assert row.first_token_ms > 0


async def test_tool_calls_pass_through_the_openai_client(gateway: RunningGateway, tenant: Tenant) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    async with AsyncOpenAI(api_key=tenant.key, base_url=f"{gateway.url}/v1", max_retries=0) as client:
        answer = await client.chat.completions.create(**ASK, tools=[tool])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].id == "call_1"


async def test_an_error_of_the_provider_comes_through_without_secrets_and_costs_nothing(
    gateway: RunningGateway, mesh: Mesh
) -> None:
    tenant = await mesh.tenant(MICROS)
    answer = await gateway.ask(tenant, {**ASK, "user": "fake:status=429"})
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "as_ordered", "7")
    assert PLATFORM_KEY not in answer.body.decode()
    assert await tenant.wallet() == (MICROS, 0)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_provider_that_refuses_our_key_is_not_the_callers_fault(
    gateway: RunningGateway, tenant: Tenant, status: int
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": f"fake:status={status}"})
    assert (answer.status, answer.code) == (502, "upstream_auth_failed")
    assert answer.headers["x-should-retry"] == "false"
    assert PLATFORM_KEY not in answer.body.decode()


async def test_an_answer_that_never_comes_is_charged_at_what_was_held_and_not_retried(
    gateway: RunningGateway, upstream: Upstream, tenant: Tenant
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": "fake:die=0"})
    assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (502, "upstream_cut", "false")
    request_id = answer.headers["x-request-id"]
    row = await tenant.used(request_id)
    assert (row.outcome, row.estimated, row.output_tokens) == ("upstream_cut", True, 64)
    assert [line["request_id"] for line in upstream.bill()].count(request_id) == 1


@pytest.mark.parametrize("order", ["die=4", "words=3;clean-eof"])
async def test_a_stream_that_breaks_off_ends_with_an_error(gateway: RunningGateway, tenant: Tenant, order: str) -> None:
    answer = await gateway.ask(tenant, {**ASK, "stream": True, "user": f"fake:usage=missing;{order}"})
    assert json.loads(answer.events[-1].removeprefix("data: "))["error"]["code"] == "upstream_cut"
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.outcome, row.estimated) == ("upstream_cut", True)
    assert row.output_tokens == 64  # all that was held: such a model thinks without showing it


async def test_a_client_that_leaves_is_drained_for_to_the_providers_own_usage(
    gateway: RunningGateway, mesh: Mesh
) -> None:
    tenant = await mesh.tenant(MICROS)
    body = {**ASK, "stream": True, "user": "fake:pause_ms=40"}
    headers = {"authorization": f"Bearer {tenant.key}"}
    async with gateway.session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as response:
        await response.content.readany()
        request_id = response.headers["x-request-id"]
        response.close()
    row = await tenant.used(request_id)
    assert (row.outcome, row.estimated) == ("client_gone", False)
    assert (row.input_tokens, row.output_tokens) == (3, 8)


async def test_a_provider_that_cannot_be_reached_costs_nothing(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(MICROS)
    nowhere = f"http://127.0.0.1:{children.free_port()}/v1"
    async with gateway_running(mesh, tmp_path, openai_api_key=Secret(PLATFORM_KEY), openai_base_url=nowhere) as gateway:
        answer = await gateway.ask(tenant, ASK)
        assert (answer.status, answer.code) == (502, "upstream_unreachable")
        await tenant.has_in_wallet(MICROS)


async def test_a_provider_without_a_key_is_not_configured(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(MICROS)
    async with gateway_running(mesh, tmp_path) as gateway:
        answer = await gateway.ask(tenant, ASK)
        assert (answer.status, answer.code) == (503, "provider_not_configured")
        await tenant.has_in_wallet(MICROS)


async def test_an_organizations_own_key_goes_before_the_platforms(
    gateway: RunningGateway, upstream: Upstream, mesh: Mesh
) -> None:
    tenant = await mesh.tenant(MICROS)
    own = f"sk-own-{ids.new(ids.Kind.REQUEST)}"
    with acting(tenant.owner):
        request = credentials_pb2.AddCredentialRequest(
            organization_id=tenant.family.organization_id,
            provider="openai",
            secret=own,
            label="ours",
            request_id=fresh(),
        )
        await call(mesh.credentials.AddCredential, request)
    answer = await gateway.ask(tenant, ASK)
    assert upstream.billed(answer.headers["x-request-id"])["key_end"] == own[-6:]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_redirection_is_an_error_that_costs_nothing(
    gateway: RunningGateway, tenant: Tenant, *, stream: bool
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "stream": stream, "user": "x:status=302"})
    assert (answer.status, answer.code) == (502, "upstream_error")
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.charged_micros, row.outcome, row.http_status) == (0, "upstream_error", 302)


async def test_a_providers_headers_carry_no_secret(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": "x:status=429;leak"})
    assert (answer.status, answer.headers.get("retry-after")) == (429, None)
    assert PLATFORM_KEY not in str(answer.headers)


async def test_an_error_that_nests_deeply_is_still_told(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, {**ASK, "user": "x:status=400;nested"})
    assert (answer.status, answer.code) == (400, "as_ordered")


async def test_figures_from_before_the_words_came_do_not_make_a_broken_stream_free(
    gateway: RunningGateway, tenant: Tenant
) -> None:
    answer = await gateway.ask(tenant, {**ASK, "stream": True, "user": "x:zeros-first;words=20;die=15"})
    row = await tenant.used(answer.headers["x-request-id"])
    assert (row.outcome, row.estimated) == ("upstream_cut", True)
    assert (row.input_tokens, row.output_tokens) > (0, 13)


async def test_an_answer_that_is_no_stream_is_an_error_and_charged_at_what_was_held(
    gateway: RunningGateway, tenant: Tenant
) -> None:
    async with AsyncOpenAI(api_key=tenant.key, base_url=f"{gateway.url}/v1", max_retries=0) as client:
        stream = await client.chat.completions.create(**ASK, stream=True, user="x:unstreamed")
        with pytest.raises(APIError) as raised:
            [chunk async for chunk in stream]
    assert raised.value.code == "upstream_cut"
    row = await tenant.used(stream.response.headers["x-request-id"])
    assert (row.outcome, row.output_tokens, row.estimated) == ("upstream_cut", 64, True)

"""Completions that are asked for under a key, over HTTP: run once, and given again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.services.gateway_running import Answer, Mesh, RunningGateway, Tenant, gateway_running
from tests.services.identity_running import fresh

MICROS = 1_000_000_000
ASK: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "once"}]}
PATHS = {
    "/v1/chat/completions": ASK,
    "/v1/messages": {**ASK, "max_tokens": 64},
    "/v1/responses": {"model": "mock-model", "input": "once"},
    "/v1/embeddings": {"model": "mock-model", "input": "once"},
}


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(MICROS)


def billed(gateway: RunningGateway, answer: Answer) -> int:
    return [line["request_id"] for line in gateway.bill()].count(answer.headers["x-request-id"])


@pytest.mark.parametrize("path", PATHS)
async def test_a_repeat_gets_the_same_bytes_and_no_second_bill(
    gateway: RunningGateway, tenant: Tenant, path: str
) -> None:
    key = fresh("key")
    first = await gateway.ask(tenant, PATHS[path], path, idempotency_key=key)
    again = await gateway.ask(tenant, PATHS[path], f"/gateway{path}", idempotency_key=key)
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert (billed(gateway, first), billed(gateway, again)) == (1, 0)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/v1/embeddings"])
async def test_a_stream_is_given_again_as_its_events(gateway: RunningGateway, tenant: Tenant, path: str) -> None:
    key, body = fresh("key"), {**PATHS[path], "stream": True}
    first = await gateway.ask(tenant, body, path, idempotency_key=key)
    again = await gateway.ask(tenant, body, path, idempotency_key=key)
    assert again.body == first.body
    assert again.headers["content-type"].startswith("text/event-stream")
    assert (billed(gateway, first), billed(gateway, again)) == (1, 0)


async def test_another_body_under_the_same_key_is_refused(gateway: RunningGateway, tenant: Tenant) -> None:
    key = fresh("key")
    await gateway.ask(tenant, ASK, idempotency_key=key)
    other = await gateway.ask(tenant, {**ASK, "temperature": 1}, idempotency_key=key)
    assert (other.status, other.code, other.headers["x-should-retry"]) == (422, "idempotency_mismatch", "false")


async def test_a_repeat_waits_for_a_run_that_goes_on(gateway: RunningGateway, tenant: Tenant) -> None:
    key = fresh("key")
    running = asyncio.create_task(gateway.ask(tenant, ASK, idempotency_key=key, x_mock="latency_ms=600"))
    await asyncio.sleep(0.3)
    early = await gateway.ask(tenant, ASK, idempotency_key=key, x_mock="latency_ms=600")
    assert (early.status, early.code, early.headers["retry-after-ms"]) == (409, "idempotency_running", "500")
    first = await running
    late = await gateway.ask(tenant, ASK, idempotency_key=key)
    assert late.body == first.body


async def test_a_refusal_before_dispatch_leaves_the_key_free(gateway: RunningGateway, mesh: Mesh) -> None:
    tenant, key = await mesh.tenant(0), fresh("key")
    refused = await gateway.ask(tenant, ASK, idempotency_key=key)
    assert (refused.status, refused.code) == (402, "insufficient_quota")
    again = await gateway.ask(tenant, ASK, idempotency_key=key)
    assert (again.status, again.code) == (402, "insufficient_quota")


async def test_one_agents_key_is_not_anothers(gateway: RunningGateway, tenant: Tenant) -> None:
    key, sibling = fresh("key"), await tenant.another_agent()
    first = await gateway.ask(tenant, ASK, idempotency_key=key)
    other = await gateway.ask(sibling, {**ASK, "temperature": 1}, idempotency_key=key)
    assert (first.status, other.status, billed(gateway, other)) == (200, 200, 1)


async def test_an_answer_that_broke_off_is_given_again_and_not_run(gateway: RunningGateway, tenant: Tenant) -> None:
    key = fresh("key")
    first = await gateway.ask(tenant, ASK, idempotency_key=key, x_mock="die_after=0")
    again = await gateway.ask(tenant, ASK, idempotency_key=key, x_mock="die_after=0")
    assert (first.status, again.status, again.code) == (502, 502, "upstream_cut")
    assert (billed(gateway, first), billed(gateway, again)) == (1, 0)


async def test_a_client_that_leaves_before_anything_is_sent_leaves_the_key_free(
    gateway: RunningGateway, tenant: Tenant
) -> None:
    key, body = fresh("key"), json.dumps(ASK).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {tenant.key}\r\n"
        f"idempotency-key: {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    for _ in range(5):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body)
        await writer.drain()
        writer.transport.abort()
    await asyncio.sleep(0.5)
    answer = await gateway.ask(tenant, ASK, idempotency_key=key)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
async def test_a_key_that_is_none_names_its_header(gateway: RunningGateway, tenant: Tenant, key: str) -> None:
    answer = await gateway.ask(tenant, ASK, idempotency_key=key)
    assert (answer.status, answer.json["error"]["param"]) == (400, "idempotency-key")


async def test_an_sdks_retry_is_taken_for_the_same_run_where_that_is_asked_for(
    gateway: RunningGateway, tenant: Tenant
) -> None:
    body = {**ASK, "user": fresh("user")}
    asked = {"x_mandate_dedupe": "retries"}
    first = await gateway.ask(tenant, body, x_stainless_retry_count="0", **asked)
    retried = await gateway.ask(tenant, body, x_stainless_retry_count="1", **asked)
    another = await gateway.ask(tenant, body, x_stainless_retry_count="0", **asked)
    assert retried.body == first.body
    assert another.body != first.body
    assert [billed(gateway, answer) for answer in (first, retried, another)] == [1, 0, 1]


async def test_a_repeat_counts_as_a_request_of_its_agent(gateway: RunningGateway, mesh: Mesh) -> None:
    tenant = await mesh.tenant()
    await gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=3, tokens_per_minute=1_000)
    await asyncio.sleep(1)
    key = fresh("key")
    answers = [await gateway.ask(tenant, ASK, idempotency_key=key) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0", "0"]
    assert answers[3].code == "rate_limit_exceeded"
    assert "idempotency-replayed" not in answers[3].headers

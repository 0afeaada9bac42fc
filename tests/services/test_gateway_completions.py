from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI, AuthenticationError

from mandate.identity.v1 import directory_pb2, keys_pb2
from mesh.caller import acting
from mesh.client import call
from tests.services.gateway_running import Answer, Mesh, RunningGateway, Tenant, gateway_running
from tests.services.identity_running import fresh

HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Hello, mock"}]}
FLAT: dict[str, Any] = {**HELLO, "model": "mock-flat"}
HELLO_MICROS = 3 * 100 + 16 * 200
PURCHASED = 1_000_000_000


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(mesh: Mesh) -> Tenant:
    return await mesh.tenant(PURCHASED)


def client_of(gateway: RunningGateway, tenant: Tenant, path: str = "/v1") -> AsyncOpenAI:
    return AsyncOpenAI(api_key=tenant.key, base_url=f"{gateway.url}{path}", max_retries=0)


async def test_a_completion_is_answered_and_charged_to_the_micro_credit(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(10_000_000)
    answer = await gateway.ask(tenant, HELLO)
    assert answer.status == 200, answer.body
    told = answer.json["x_platform"]
    assert told["micro_credits_charged"] == HELLO_MICROS
    assert told["credits_charged"] == HELLO_MICROS / 1_000_000
    assert told["balance_micro_credits"] == 10_000_000 - HELLO_MICROS
    assert told["request_id"] == answer.headers["x-request-id"]
    assert await tenant.wallet() == (10_000_000 - HELLO_MICROS, 0)


async def test_usage_of_each_request_agrees_with_the_bill_of_the_model(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    answers = [await gateway.ask(tenant, {**HELLO, "max_tokens": count}) for count in (1, 5, 16, 99)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    bill = {line["request_id"]: line for line in gateway.bill() if line["request_id"] in ids}
    assert set(bill) == ids
    assert [bill[answer.headers["x-request-id"]]["completion_tokens"] for answer in answers] == [1, 5, 16, 16]
    assert {answer.json["usage"]["completion_tokens"] for answer in answers} == {1, 5, 16}


@pytest.mark.parametrize("path", ["/v1", "/gateway/v1"])
async def test_the_openai_client_works_unchanged(gateway: RunningGateway, tenant: Tenant, path: str) -> None:
    async with client_of(gateway, tenant, path) as client:
        answer = await client.chat.completions.create(**HELLO)
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)
        assert answer.model_extra is not None
        assert answer.model_extra["x_platform"]["request_id"] == answer._request_id
        models = await client.models.list()
        assert {"mock-model", "mock-flat"} <= {model.id for model in models.data}
        assert (await client.models.retrieve("mock-flat")).owned_by == "mock"


async def test_a_stream_gives_usage_and_charge_to_a_client_that_asks(gateway: RunningGateway, tenant: Tenant) -> None:
    async with client_of(gateway, tenant) as client:
        stream = await client.chat.completions.create(**HELLO, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "tok " * 16
    assert [chunk.usage is not None for chunk in chunks].count(True) == 1
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["x_platform"]["micro_credits_charged"] == HELLO_MICROS


async def test_a_stream_hides_usage_from_a_client_that_did_not_ask(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, {**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert '"usage":{' not in answer.body.decode()
    assert answer.events[-1] == "data: [DONE]"
    name, _, receipt = answer.events[-2].partition(" {")
    assert name == ": x_platform"
    assert json.loads("{" + receipt)["micro_credits_charged"] == HELLO_MICROS


async def test_a_request_without_a_limit_is_told_the_one_it_was_given(gateway: RunningGateway, tenant: Tenant) -> None:
    assert (await gateway.ask(tenant, HELLO)).headers["x-mandate-max-tokens"] == "4096"
    assert "x-mandate-max-tokens" not in (await gateway.ask(tenant, {**HELLO, "max_tokens": 7})).headers


@pytest.mark.parametrize("key", ["", "nonsense", "cpk_" + "a" * 300, "cpk_nobodys", "sk-0123456789"])
async def test_a_key_that_nobody_holds_is_401(gateway: RunningGateway, key: str) -> None:
    answer = await gateway.ask(key, HELLO)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert answer.headers["x-request-id"].startswith("req_")


async def test_the_key_may_come_as_x_api_key(gateway: RunningGateway, tenant: Tenant) -> None:
    async with gateway.session.post(
        f"{gateway.url}/v1/chat/completions", json=HELLO, headers={"x-api-key": tenant.key}
    ) as response:
        assert response.status == 200


async def test_a_revoked_key_is_refused_within_a_second(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    assert (await gateway.ask(tenant, HELLO)).status == 200
    with acting(tenant.owner):
        request = keys_pb2.RevokeApiKeyRequest(api_key_id=tenant.key_id, request_id=fresh())
        await call(gateway.mesh.keys.RevokeApiKey, request)
    await asyncio.sleep(1)
    answer = await gateway.ask(tenant, HELLO)
    assert (answer.status, answer.code) == (401, "invalid_api_key")


async def test_a_suspended_agent_is_refused_until_it_is_resumed(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    assert (await gateway.ask(tenant, HELLO)).status == 200
    with acting(tenant.owner):
        await call(
            gateway.mesh.directory.SuspendAgent,
            directory_pb2.SuspendAgentRequest(agent_id=tenant.family.agent_id, request_id=fresh()),
        )
    await asyncio.sleep(1)
    refused = await gateway.ask(tenant, HELLO)
    assert (refused.status, refused.code) == (403, "agent_suspended")
    with acting(tenant.owner):
        await call(
            gateway.mesh.directory.ResumeAgent,
            directory_pb2.ResumeAgentRequest(agent_id=tenant.family.agent_id, request_id=fresh()),
        )
    await asyncio.sleep(1)
    assert (await gateway.ask(tenant, HELLO)).status == 200


async def test_an_empty_wallet_is_402_and_no_model_is_called(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    before = len(gateway.bill())
    answer = await gateway.ask(tenant, FLAT)
    assert (answer.status, answer.code) == (402, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    assert len(gateway.bill()) == before


async def test_concurrent_requests_never_spend_more_than_there_is(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(7_000_000)
    answers = await asyncio.gather(*(gateway.ask(tenant, FLAT) for _ in range(40)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses.count(200) == 7
    assert set(statuses) <= {200, 402, 429}
    assert await tenant.wallet() == (0, 0)


async def test_money_that_requests_in_flight_hold_is_429_and_soon_free_again(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(1_000_000)
    first = asyncio.ensure_future(gateway.ask(tenant, FLAT, x_mock="latency_ms=800;status=500"))
    await asyncio.sleep(0.2)
    refused = await gateway.ask(tenant, FLAT)
    assert (refused.status, refused.code) == (429, "budget_in_flight")
    assert int(refused.headers["retry-after-ms"]) > 0
    assert (await first).status == 500
    assert (await gateway.ask(tenant, FLAT)).status == 200


async def test_a_request_that_does_not_fit_is_clamped_to_what_is_left(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(300 + 40 * 200)
    answer = await gateway.ask(tenant, {**HELLO, "max_tokens": 1000})
    assert answer.status == 200
    assert answer.headers["x-mandate-max-tokens"] == "40"


async def test_a_caller_that_takes_no_clamp_is_refused_instead(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(300 + 40 * 200)
    answer = await gateway.ask(tenant, {**HELLO, "max_tokens": 1000}, x_mandate_clamp="off")
    assert answer.status == 402


async def test_an_error_of_the_provider_is_passed_on_and_costs_nothing(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(10_000_000)
    answer = await gateway.ask(tenant, HELLO, x_mock="status=500")
    assert (answer.status, answer.code) == (500, "mock")
    assert await tenant.wallet() == (10_000_000, 0)


async def test_missing_usage_is_settled_at_what_was_held(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(10_000_000)
    answer = await gateway.ask(tenant, {**HELLO, "max_tokens": 50}, x_mock="usage=missing")
    assert answer.json["x_platform"]["micro_credits_charged"] == 300 + 50 * 200


async def test_a_stream_that_dies_ends_with_an_error_and_is_charged_for_what_came(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(10_000_000)
    answer = await gateway.ask(tenant, {**HELLO, "stream": True}, x_mock="die_after=5")
    assert json.loads(answer.events[-1].removeprefix("data: "))["error"]["code"] == "upstream_cut"
    bill = next(line for line in gateway.bill() if line["request_id"] == answer.headers["x-request-id"])
    assert bill["completion_tokens"] == 5
    assert await tenant.wallet() == (10_000_000 - 300 - 5 * 200, 0)


async def test_the_openai_client_raises_when_a_stream_dies(gateway: RunningGateway, tenant: Tenant) -> None:
    async with client_of(gateway, tenant) as client:
        stream = await client.chat.completions.create(**HELLO, stream=True, extra_headers={"x-mock": "die_after=3"})
        with pytest.raises(APIError) as raised:
            [chunk async for chunk in stream]
    assert raised.value.code == "upstream_cut"


async def test_a_client_that_leaves_a_stream_still_pays_for_all_of_it(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(10_000_000)
    body = {**HELLO, "stream": True}
    headers = {"authorization": f"Bearer {tenant.key}", "x-mock": "latency_ms=300"}
    with pytest.raises(TimeoutError):
        async with (
            asyncio.timeout(0.15),
            gateway.session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            await response.read()
    await tenant.has_in_wallet(10_000_000 - HELLO_MICROS)


async def test_errors_have_the_shape_that_the_openai_client_reads(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    async with client_of(gateway, tenant) as client:
        with pytest.raises(APIStatusError) as raised:
            await client.chat.completions.create(**FLAT)
        assert (raised.value.status_code, raised.value.code) == (402, "insufficient_quota")
        assert raised.value.request_id is not None
    async with AsyncOpenAI(api_key="cpk_wrong", base_url=f"{gateway.url}/v1", max_retries=0) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.models.list()


BAD = [
    (b"{", 400, "invalid_json", None),
    (b"[]", 400, "invalid_json", None),
    (b'{"a":' * 100 + b"1" + b"}" * 100, 400, "invalid_json", None),
    ({"messages": HELLO["messages"]}, 400, "invalid_field", "model"),
    ({**HELLO, "messages": []}, 400, "invalid_field", "messages"),
    ({**HELLO, "messages": [1]}, 400, "invalid_field", "messages[0]"),
    ({**HELLO, "n": 17}, 400, "invalid_field", "n"),
    ({**HELLO, "max_tokens": 0}, 400, "invalid_field", "max_tokens"),
    ({**HELLO, "stream": "yes"}, 400, "invalid_field", "stream"),
    ({**HELLO, "web_search_options": {}}, 400, "unpriced_field", "web_search_options"),
    ({**HELLO, "model": "no-such-model"}, 404, "model_not_found", "model"),
    (b" " * (1024 * 1024 + 1), 413, "body_too_large", None),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD)
async def test_what_is_wrong_with_a_request_is_named(
    gateway: RunningGateway, tenant: Tenant, body: object, status: int, code: str, param: str | None
) -> None:
    answer = await gateway.ask(tenant, body)
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (status, code, param)


async def test_a_number_of_five_thousand_digits_is_no_order(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, HELLO, x_mock=f"latency_ms={'9' * 5_000}")
    assert (answer.status, answer.code) == (400, "invalid_field")


async def test_a_wrong_order_to_the_mock_is_named_and_nothing_stays_held(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(10_000_000)
    answer = await gateway.ask(tenant, HELLO, x_mock="explode=1")
    assert (answer.status, answer.json["error"]["param"]) == (400, "x-mock")
    await tenant.has_in_wallet(10_000_000)


async def test_unknown_urls_and_methods_are_refused_in_the_same_shape(gateway: RunningGateway) -> None:
    assert (await gateway.get("/v1/nothing")).code == "unknown_url"
    wrong = await gateway.get("/v1/chat/completions")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_health_version_and_metrics_are_open(gateway: RunningGateway) -> None:
    assert (await gateway.get("/health")).json == {"status": "ok"}
    ready = (await gateway.get("/health/ready")).json
    assert ready["checks"] == dict.fromkeys(("identity", "policies", "routes", "ledger", "valkey", "database"), "ok")
    assert (await gateway.get("/version")).json["service"] == "gateway"
    assert b"mandate_completions_total" in (await gateway.get("/metrics")).body


async def test_one_process_takes_only_so_many_at_once(mesh: Mesh, tmp_path: Path) -> None:
    tenants = [await mesh.tenant() for _ in range(4)]
    async with gateway_running(mesh, tmp_path, in_flight_max=2) as small:
        slow = {"x_mock": "latency_ms=500"}
        answers = await asyncio.gather(*(small.ask(tenant, HELLO, **slow) for tenant in tenants))
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200, 200, 503, 503]
    assert {answer.code for answer in answers if answer.status == 503} == {"overloaded"}


async def test_a_draining_gateway_finishes_what_is_open(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(10_000_000)
    async with gateway_running(mesh, tmp_path, drain_seconds=5) as leaving:
        asking = asyncio.ensure_future(leaving.ask(tenant, HELLO, x_mock="latency_ms=400"))
        await asyncio.sleep(0.2)
        await leaving.built.drain()
        answer = await asking
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await tenant.wallet() == (10_000_000 - HELLO_MICROS, 0)


async def test_no_organization_takes_every_seat(mesh: Mesh, tenant: Tenant, tmp_path: Path) -> None:
    other = await mesh.tenant()
    async with gateway_running(mesh, tmp_path, in_flight_max=4) as small:
        greedy = [asyncio.ensure_future(small.ask(tenant, HELLO, x_mock="latency_ms=600")) for _ in range(4)]
        await asyncio.sleep(0.3)
        assert (await small.ask(other, HELLO)).status == 200
        assert sorted(answer.status for answer in await asyncio.gather(*greedy)) == [200, 200, 200, 503]


async def test_two_greedy_organizations_leave_a_seat_to_a_third(mesh: Mesh, tenant: Tenant, tmp_path: Path) -> None:
    other, third = await mesh.tenant(), await mesh.tenant()
    async with gateway_running(mesh, tmp_path, in_flight_max=8) as small:
        asking: list[asyncio.Future[Answer]] = []
        for greedy in (tenant, other):
            asking += [asyncio.ensure_future(small.ask(greedy, HELLO, x_mock="latency_ms=800")) for _ in range(8)]
            await asyncio.sleep(0.2)
        assert (await small.ask(third, HELLO)).status == 200
        statuses = [answer.status for answer in await asyncio.gather(*asking)]
    assert [statuses[:8].count(200), statuses[8:].count(200)] == [6, 1]


async def test_a_stranger_is_refused_before_a_body_is_waited_for(gateway: RunningGateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    async with asyncio.timeout(5):
        assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_is_not_what_its_headers_say_is_400(gateway: RunningGateway, tenant: Tenant) -> None:
    answer = await gateway.ask(tenant, b"not gzip", content_encoding="gzip")
    assert (answer.status, answer.code) == (400, "bad_request")


async def test_a_key_in_a_header_that_cannot_be_read_stays_out_of_the_log(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization Bearer cpk_canary\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    told = "".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "cpk_canary" not in told

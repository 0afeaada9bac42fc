"""Whatever a provider says of usage, and whenever a client leaves: what the row says of where its figures are from."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from gateway_svc import relay
from mandate.ledger.v1 import wallets_pb2
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, gateway_running

TOKENS_IN, TOKENS_OUT = 2, 16  # of "hello", and of every answer that comes whole
IN_MICROS, OUT_MICROS = 100, 200
HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
SLOW = "event_ms=60"  # a whole answer takes a second
MICROS = 10**9


def micros(tokens_in: int, tokens_out: int) -> int:
    return tokens_in * IN_MICROS + tokens_out * OUT_MICROS


@dataclass(frozen=True, slots=True)
class Row:
    """What is expected of one usage row."""

    source: str
    outcome: str
    tokens: tuple[int, int]
    estimated: bool = False

    @classmethod
    def of(cls, row: wallets_pb2.Usage) -> Row:
        assert row.charged_micros == micros(row.input_tokens, row.output_tokens)
        return cls(row.usage_source, row.outcome, (row.input_tokens, row.output_tokens), row.estimated)


HELD = (TOKENS_IN, TOKENS_OUT)
SHAPES = [
    ("", Row("reported", "ok", HELD)),
    ("usage=missing", Row("missing", "ok", HELD, estimated=True)),
    ("usage=zero", Row("zero", "ok", (0, 0))),
    ("usage=double", Row("above_bound", "ok", (2 * TOKENS_IN, 2 * TOKENS_OUT))),
    ("usage=negative", Row("invalid", "ok", HELD, estimated=True)),
    ("usage=text", Row("invalid", "ok", HELD, estimated=True)),
]


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def agent(gateway: RunningGateway, *, cut: bool) -> Tenant:
    """Make an agent whose abandoned streams are cut, or drained."""
    tenant = await gateway.mesh.tenant(MICROS)
    if cut:
        await gateway.limit(tenant, tenant.family.agent_id, cut_abandoned_streams=True)
        await asyncio.sleep(0.5)  # until the gateway has heard of it
    return tenant


async def leave(gateway: RunningGateway, tenant: Tenant, mock: str, *, after_events: int, **more: Any) -> str:
    """Ask for a stream, go away after so many events, and return the request's id."""
    headers = {"authorization": f"Bearer {tenant.key}", "x-mock": mock}
    body = {**HELLO, **more, "stream": True}
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
        seen = 0
        while seen < after_events:
            seen += (await response.content.readline()).startswith(b"data: ")
        response.close()
    return response.headers["x-request-id"]


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("mock", "expected"), SHAPES, ids=[shape or "as it is" for shape, _ in SHAPES])
async def test_the_row_tells_where_its_figures_are_from(
    gateway: RunningGateway, mock: str, expected: Row, *, stream: bool, cut: bool
) -> None:
    tenant = await agent(gateway, cut=cut)
    answer = await gateway.ask(tenant, {**HELLO, "stream": stream}, x_mock=mock)
    assert answer.status == 200
    row = await tenant.used(answer.headers["x-request-id"])
    assert Row.of(row) == expected
    assert await tenant.wallet() == (MICROS - row.charged_micros, 0)


@pytest.mark.parametrize(
    ("stream", "mock", "tokens"),
    [
        (False, "die_after=5", HELD),
        (True, "die_after=5", (TOKENS_IN, 5)),
        (True, "die_after=0", (TOKENS_IN, 0)),
        (True, "die_after=5;usage=double", (TOKENS_IN, 5)),
    ],
)
async def test_what_broke_off_is_charged_for_what_came_else_for_what_was_held(
    gateway: RunningGateway, mock: str, tokens: tuple[int, int], *, stream: bool
) -> None:
    tenant = await agent(gateway, cut=False)
    answer = await gateway.ask(tenant, {**HELLO, "stream": stream}, x_mock=mock)
    assert b'"error"' in answer.body
    row = await tenant.used(answer.headers["x-request-id"])
    assert Row.of(row) == Row("missing", "upstream_cut", tokens, estimated=True)


@pytest.mark.parametrize(("mock", "told"), SHAPES, ids=[shape or "as it is" for shape, _ in SHAPES])
async def test_a_stream_whose_client_left_is_read_to_its_usage_whatever_that_says(
    gateway: RunningGateway, mock: str, told: Row
) -> None:
    tenant = await agent(gateway, cut=False)
    request_id = await leave(gateway, tenant, f"{SLOW};{mock}", after_events=3)
    row = await tenant.used(request_id)
    assert Row.of(row) == Row(told.source, "client_gone", told.tokens, told.estimated)


@pytest.mark.parametrize("mock", [shape for shape, _ in SHAPES])
async def test_a_policy_has_a_stream_cut_whose_client_left_and_charged_for_what_came(
    gateway: RunningGateway, mock: str
) -> None:
    tenant = await agent(gateway, cut=True)
    request_id = await leave(gateway, tenant, f"{SLOW};{mock}", after_events=3)
    row = await tenant.used(request_id)
    assert (row.usage_source, row.outcome, row.estimated) == ("missing", "client_gone", True)
    assert 3 <= row.output_tokens < TOKENS_OUT
    assert row.charged_micros == micros(TOKENS_IN, row.output_tokens)
    assert await tenant.wallet() == (MICROS - row.charged_micros, 0)


async def test_a_stream_that_dies_while_nobody_reads_it_is_charged_for_what_came(gateway: RunningGateway) -> None:
    tenant = await agent(gateway, cut=False)
    row = await tenant.used(await leave(gateway, tenant, f"{SLOW};die_after=8", after_events=3))
    assert Row.of(row) == Row("missing", "client_gone", (TOKENS_IN, 8), estimated=True)


async def test_nobody_is_read_for_longer_than_the_drain_may_take(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "DRAIN_SECONDS_MAX", 0.5)
    tenant = await agent(gateway, cut=False)
    began = time.monotonic()
    request_id = await leave(gateway, tenant, "event_ms=50;tokens=1000;events=1000", after_events=3, max_tokens=1000)
    row = await tenant.used(request_id)
    assert time.monotonic() - began < 10  # of the 50 s that the stream would have taken
    assert (row.usage_source, row.outcome, row.estimated) == ("missing", "client_gone", True)
    assert 3 <= row.output_tokens < 1000


async def test_nobody_is_read_for_more_bytes_than_the_drain_may_take(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "DRAIN_BYTES_MAX", 2_000)
    tenant = await agent(gateway, cut=False)
    row = await tenant.used(await leave(gateway, tenant, SLOW, after_events=2))
    assert (row.usage_source, row.outcome, row.estimated) == ("missing", "client_gone", True)
    assert 2 <= row.output_tokens < TOKENS_OUT


async def test_a_client_that_leaves_before_its_answer_begins_pays_what_the_model_did(gateway: RunningGateway) -> None:
    tenant = await agent(gateway, cut=False)
    before = {line["request_id"] for line in gateway.bill()}
    headers = {"authorization": f"Bearer {tenant.key}", "x-mock": "latency_ms=400"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), aiohttp.ClientSession() as session:
            await session.post(f"{gateway.url}/v1/chat/completions", data=json.dumps(HELLO).encode(), headers=headers)
    await tenant.has_in_wallet(MICROS - micros(*HELD))
    (row,) = await tenant.usage()
    assert Row.of(row) == Row("reported", "client_gone", HELD)
    assert {line["request_id"] for line in gateway.bill()} - before == {row.request_id}

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from mandate.ledger.v1 import reports_pb2, reports_pb2_grpc
from mesh.caller import acting
from mesh.client import call
from mesh.clock import SystemClock
from mesh.secret import Secret
from tests.services.gateway_running import (
    Mesh,
    RunningGateway,
    Tenant,
    Upstream,
    gateway_running,
)

ASK: dict[str, Any] = {"model": "gpt-6.2-sol", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 64}
LONG = "ann@" + "x" * 200
LONG_NAME = f"sha256:{hashlib.sha256(LONG.encode()).hexdigest()}"


@pytest.fixture(scope="module")
async def gateway(
    mesh: Mesh, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    settings: dict[str, Any] = {"openai_api_key": Secret("sk-0123456789"), "openai_base_url": upstream.url}
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway"), **settings) as running:
        yield running


async def top_users(tenant: Tenant) -> dict[str, int]:
    """Return how many requests the report on end users counts for each."""
    now = SystemClock().now().replace(minute=0, second=0, microsecond=0)
    request = reports_pb2.GetTopUsageRequest(
        organization_id=tenant.family.organization_id,
        node_id=tenant.family.organization_id,
        kind=reports_pb2.USAGE_SHARE_KIND_END_USER,
        measure=reports_pb2.USAGE_MEASURE_REQUESTS,
    )
    request.from_time.FromDatetime(now - timedelta(hours=1))
    request.to_time.FromDatetime(now + timedelta(hours=2))
    services = reports_pb2.DESCRIPTOR.services_by_name.values()
    ledger = tenant.mesh.ledger
    async with tenant.mesh.house.channel("ledger", ledger.address, as_service="edge", services=services) as channel:
        with acting(tenant.owner):
            top = await call(reports_pb2_grpc.ReportServiceStub(channel).GetTopUsage, request)
    return {share.name: share.requests for share in top.shares}


async def test_usage_names_the_end_user_and_the_provider_gets_the_fields_as_they_came(
    gateway: RunningGateway, upstream: Upstream
) -> None:
    tenant = await gateway.mesh.tenant()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"user": "ann"}, "ann"),
        ({"safety_identifier": "ann", "user": "somebody else"}, "ann"),
        ({"safety_identifier": LONG, "stream": True}, LONG_NAME),
        ({}, ""),
    ]
    for fields, expected in cases:
        answer = await gateway.ask(tenant, {**ASK, **fields})
        assert answer.status == 200, answer.body
        request_id = answer.headers["x-request-id"]
        assert (await tenant.used(request_id)).end_user == expected
        body = upstream.billed(request_id)["body"]
        assert {name: body.get(name) for name in fields} == fields
    assert await top_users(tenant) == {"ann": 2, LONG_NAME: 1}


async def test_an_end_user_that_is_no_text_is_refused_before_anything_is_sent(
    gateway: RunningGateway, upstream: Upstream
) -> None:
    tenant = await gateway.mesh.tenant()
    answer = await gateway.ask(tenant, {**ASK, "user": 7})
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, "invalid_field", "user")
    assert answer.headers["x-request-id"] not in {line["request_id"] for line in upstream.bill()}
    assert await tenant.usage() == []

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import httpx
import pytest

from tests.fakes.collector import collecting
from tests.journeys.running import Mesh

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]


async def test_one_trace_leads_from_the_agents_request_to_sql(tmp_path: Path) -> None:
    trace_id = secrets.token_hex(16)
    async with collecting() as collector:
        mesh = Mesh(tmp_path / "home", extra={"MANDATE_OTLP_ENDPOINT": f"http://{collector.address}"})

        def complete() -> httpx.Response:
            tenant = mesh.tenant(5_000_000)
            return httpx.post(
                f"{mesh.gateway_url}/v1/chat/completions",
                json={"model": "mock-model", "messages": [{"role": "user", "content": "a canary of a prompt"}]},
                headers={
                    "authorization": f"Bearer {tenant.api_key}",
                    "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
                },
            )

        up = mesh.up()
        await asyncio.to_thread(up.__enter__)
        try:
            answer = await asyncio.to_thread(complete)
        finally:
            await asyncio.to_thread(up.__exit__, None, None, None)  # what is still waiting is sent as each part stops
    assert answer.status_code == 200
    found = {(span.service, span.name) for span in collector.spans if span.trace_id == trace_id}
    assert found >= {
        ("mandate-gateway", "POST /v1/chat/completions"),
        ("mandate-identity", "/mandate.identity.v1.KeyService/ResolveApiKey"),
        ("mandate-identity", "postgresql"),
        ("mandate-ledger", "ledger.place"),
        ("mandate-ledger", "ledger.settle"),
        ("mandate-ledger", "postgresql"),
    }

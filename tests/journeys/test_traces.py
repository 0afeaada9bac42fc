from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import httpx
import pytest

from tests.fakes.collector import collecting
from tests.journeys.running import Mesh, Tenant

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]

CANARY = "a canary of a prompt"


async def test_one_trace_leads_from_the_agents_request_to_sql(tmp_path: Path) -> None:
    trace_id = secrets.token_hex(16)
    async with collecting() as collector:
        mesh = Mesh(tmp_path / "home", extra={"MANDATE_OTLP_ENDPOINT": f"http://{collector.address}"})

        def complete() -> tuple[Tenant, httpx.Response]:
            tenant = mesh.tenant(5_000_000)
            return tenant, httpx.post(
                f"{mesh.gateway_url}/v1/chat/completions",
                json={"model": "mock-model", "messages": [{"role": "user", "content": CANARY}]},
                headers={
                    "authorization": f"Bearer {tenant.api_key}",
                    "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
                },
            )

        up = mesh.up()
        await asyncio.to_thread(up.__enter__)
        try:
            tenant, answer = await asyncio.to_thread(complete)
        finally:
            await asyncio.to_thread(up.__exit__, None, None, None)  # what is still waiting is sent as each part stops
    assert answer.status_code == 200
    found = {(span.service, span.name) for span in collector.spans if span.trace_id == trace_id}
    assert found >= {
        ("mandate-gateway", "POST /v1/chat/completions"),
        ("mandate-gateway", "chat mock-model"),
        ("mandate-identity", "/mandate.identity.v1.KeyService/ResolveApiKey"),
        ("mandate-identity", "postgresql"),
        ("mandate-ledger", "ledger.place"),
        ("mandate-ledger", "ledger.settle"),
        ("mandate-ledger", "postgresql"),
    }
    served, asked = (
        next(span for span in collector.spans if (span.trace_id, span.name) == (trace_id, name))
        for name in ("POST /v1/chat/completions", "chat mock-model")
    )
    usage = answer.json()["usage"]
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mock",
        "gen_ai.request.model": "mock-model",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "http.response.status_code": 200,
    }
    assert asked.attributes.items() >= told.items()
    assert served.attributes.items() >= (told | {"gen_ai.agent.id": tenant.agent_id, "mandate.outcome": "ok"}).items()
    assert not [span.name for span in collector.spans if CANARY in span.sent or tenant.api_key in span.sent]

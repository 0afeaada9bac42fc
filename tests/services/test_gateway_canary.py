"""Planted keys are driven through all that can go right or wrong, and then looked for everywhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway_svc import breaker
from mesh.clock import SystemClock
from mesh.secret import Secret
from tests.fakes.access_tokens import Issuer
from tests.services.canary_running import (
    OWN_ANTHROPIC,
    OWN_ELSEWHERE,
    OWN_OPENAI,
    PLATFORM_ANTHROPIC,
    PLATFORM_OPENAI,
    SECRETS,
    Told,
    dump,
    edge_of,
    keyed,
    leaks,
    logging_everything,
    needles,
    tracing,
)
from tests.services.gateway_running import Mesh, Upstream, gateway_running, mesh_running
from tests.services.test_gateway_completions import HELLO

pytestmark = pytest.mark.timeout(300)
EVERYTHING = """query($id: ID!) { organization(id: $id) { name
  providerCredentials { nodes { id provider label baseUrl hint removeTime } }
  usage(first: 100) { nodes { requestId outcome } } auditExport(first: 100) { lines } } }"""


@pytest.fixture(scope="module")
async def told(house: Any, ledger: Any, upstream: Upstream, tmp_path_factory: Any) -> AsyncIterator[Told]:
    settings: dict[str, Any] = {
        "openai_api_key": Secret(PLATFORM_OPENAI),
        "openai_base_url": upstream.url,
        "anthropic_api_key": Secret(PLATFORM_ANTHROPIC),
        "anthropic_base_url": upstream.url,
    }
    said: list[bytes] = []
    patched = pytest.MonkeyPatch()
    patched.setattr(breaker, "FAILURES_MAX", 10**9)  # else most of what is asked would never be sent
    patched.setattr(breaker, "WINDOW_CALLS_MIN", 10**9)
    folder = tmp_path_factory.mktemp("gateway")
    with logging_everything() as log:
        async with (
            tracing() as collector,
            mesh_running(house, ledger) as mesh,
            gateway_running(mesh, folder, **settings) as gateway,
            edge_of(gateway, said) as edge,
        ):
            told = Told(gateway, edge, collector, log, graphql=said)
            await drive(told, mesh)
            yield told
    patched.undo()


async def drive(told: Told, mesh: Mesh) -> None:
    """Ask with the platform's keys, with an organization's own, and with one that leads nowhere; by key and token."""
    tenant = await mesh.tenant(10**12)
    await told.ask_everything(tenant.key)
    asker = await told.edge.person()
    organization, key = await keyed(asker, openai=OWN_OPENAI, anthropic=OWN_ANTHROPIC)
    await told.ask_everything(key)
    await asker.ask(EVERYTHING, id=organization)
    astray, lost = await keyed(asker, openai_elsewhere=OWN_ELSEWHERE)
    told.keys.append(lost)
    told.heard(await told.gateway.ask(lost, {**HELLO, "model": "gpt-6.2-sol"}))
    await asker.ask(EVERYTHING, id=astray)
    token = Issuer(mesh.identity.keys.signer()).token(tenant.family.agent_id, SystemClock().now())
    for shown in (token, f"{token[:-6]}AAAAAA", f"{tenant.key[:-6]}AAAAAA"):
        told.keys.append(shown)
        told.heard(await told.gateway.ask(shown, {**HELLO, "user": "x"}))
        told.heard(await told.gateway.ask(shown, b"{", "/v1/messages"))
        told.heard(await told.gateway.get("/v1/models/nothing", shown))
    for path in ("/metrics", "/health/ready", "/version"):
        told.heard(await told.gateway.get(path))
    await asyncio.sleep(1)  # what is delivered in the background


async def test_the_keys_were_used_in_every_way_that_was_meant(told: Told, upstream: Upstream) -> None:
    used = {line["key_end"] for line in upstream.bill()}
    assert {key[-6:] for key in (PLATFORM_OPENAI, PLATFORM_ANTHROPIC, OWN_OPENAI, OWN_ANTHROPIC)} <= used
    assert len(upstream.bill()) == told.asked - 2 > 500  # all but what is only counted
    statuses = {line.partition(b'"code":')[2][:40] for line in told.answers if b'"code":' in line}
    assert any(b"upstream_auth_failed" in status for status in statuses)
    assert sum(b"[redacted]" in body for body in told.answers) > 50
    assert b"upstream_unreachable" in b"".join(told.answers)


def test_a_search_finds_what_is_there() -> None:
    for form, needle in needles(OWN_OPENAI).items():
        assert [found[1] for found in leaks([b"x" + needle + b"y"], [OWN_OPENAI])].count(form) == 1


async def test_no_key_of_a_provider_is_in_any_answer(told: Told) -> None:
    assert leaks(told.answers, SECRETS) == []


async def test_no_key_is_in_any_log_line(told: Told) -> None:
    log = told.log.getvalue().encode()
    assert b"upstream.refused" in log
    assert b'"level":"DEBUG"' in log.replace(b'": "', b'":"')
    assert leaks([log], [*SECRETS, *told.keys]) == []


async def test_no_agents_key_or_token_comes_back_to_anybody(told: Told) -> None:
    assert leaks(told.answers, told.keys) == []


async def test_no_key_is_in_what_the_edge_says(told: Told) -> None:
    assert b"providerCredentials" in b"".join(told.graphql)
    assert leaks(told.graphql, [*SECRETS, *told.keys]) == []


async def test_no_key_is_in_a_span(told: Told) -> None:
    async with asyncio.timeout(30):
        while True:
            if any(span.name == "POST /v1/chat/completions" for span in told.collector.spans):
                break
            await asyncio.sleep(0.1)
    assert leaks(told.collector.exported, [*SECRETS, *told.keys]) == []


async def test_no_key_rests_in_postgresql_or_valkey(told: Told) -> None:
    rows = await dump(told.gateway.mesh.house)
    names = {row.partition(b"\n")[0] for row in rows}
    assert {b"vault.credentials", b"gateway.replays", b"ledger.usage", b"identity.api_keys"} <= names
    assert leaks(rows, [*SECRETS, *told.keys]) == []

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway_svc.access_tokens import SCOPE
from gateway_svc.who import Directory
from identity_svc.store import changes
from mandate.identity.v1 import directory_pb2
from mesh import ids, tokens
from mesh.caller import acting
from mesh.client import call
from mesh.clock import SystemClock, monotonic_ms
from mesh.errors import Unauthenticated, Unavailable
from mesh.secret import Secret
from tests.fakes.access_tokens import Issuer, stranger
from tests.fakes.cable import cable
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, gateway_running
from tests.services.identity_running import fresh

HELLO: dict[str, Any] = {"model": "mock-flat", "messages": [{"role": "user", "content": "Hello, mock"}]}
CREDIT = 1_000_000


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def now() -> datetime:
    return SystemClock().now()


def issuer(mesh: Mesh) -> Issuer:
    return Issuer(mesh.identity.keys.signer())


def token_of(tenant: Tenant, **claims: Any) -> str:
    return issuer(tenant.mesh).token(tenant.family.agent_id, now(), **claims)


async def suspend(tenant: Tenant) -> None:
    request = directory_pb2.SuspendAgentRequest(agent_id=tenant.family.agent_id, request_id=fresh())
    with acting(tenant.owner):
        await call(tenant.mesh.directory.SuspendAgent, request)


async def test_a_completion_by_token_is_charged_to_the_tokens_agent(mesh: Mesh, gateway: RunningGateway) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    other = await tenant.another_agent()
    answer = await gateway.ask(token_of(other), HELLO)
    assert answer.status == 200
    used = await tenant.used(answer.headers["x-request-id"])
    assert (used.agent_id, used.api_key_id) == (other.family.agent_id, "")
    await tenant.has_in_wallet(99 * CREDIT)


async def test_a_token_shows_its_agents_models(mesh: Mesh, gateway: RunningGateway) -> None:
    tenant = await mesh.tenant()
    by_token, by_key = await gateway.get("/v1/models", token_of(tenant)), await gateway.get("/v1/models", tenant.key)
    assert by_token.status == 200
    assert by_token.json == by_key.json


Bad = Callable[[Tenant], str]
BAD: dict[str, Bad] = {
    "alg none": lambda tenant: issuer(tenant.mesh).unsigned(tenant.family.agent_id, now()),
    "the public key as a shared secret": lambda tenant: issuer(tenant.mesh).by_public_key(
        tenant.family.agent_id, now()
    ),
    "a stranger's signature": lambda tenant: stranger(issuer(tenant.mesh).signer.key_id).token(
        tenant.family.agent_id, now()
    ),
    "an unknown key": lambda tenant: stranger("nobodys").token(tenant.family.agent_id, now()),
    "another type": lambda tenant: issuer(tenant.mesh).token(tenant.family.agent_id, now(), {"typ": "JWT"}),
    "another audience": lambda tenant: token_of(tenant, aud="mandate-mesh"),
    "another issuer": lambda tenant: token_of(tenant, iss="https://example.com"),
    "expired": lambda tenant: token_of(tenant, exp=int(now().timestamp()) - 1),
    "not yet": lambda tenant: token_of(tenant, nbf=int(now().timestamp()) + 60),
    "an unknown agent": lambda tenant: token_of(tenant, sub=ids.new(ids.Kind.AGENT)),
    "too long": lambda tenant: token_of(tenant, padding="x" * 8192),
    "deep": lambda _: "W1tb" * 1_500 + ".e30.e30",
    "no token": lambda _: "only.two",
    "a long key": lambda _: "cpk_" + "x" * 253,
}


@pytest.mark.parametrize("made", BAD.values(), ids=BAD.keys())
async def test_a_bad_token_gets_401_and_is_told_nowhere(
    mesh: Mesh, gateway: RunningGateway, caplog: pytest.LogCaptureFixture, made: Bad
) -> None:
    caplog.set_level(logging.DEBUG)
    token = made(await mesh.tenant())
    answer = await gateway.ask(token, HELLO)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    said = " ".join([answer.body.decode(), *(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)])
    assert not [part for part in token.split(".") if len(part) > 8 and part in said]


async def test_a_persons_mesh_token_gets_nobody_in(mesh: Mesh, gateway: RunningGateway) -> None:
    person = (await mesh.tenant()).owner.person
    assert person is not None
    assert (await gateway.ask(person.token.reveal(), HELLO)).status == 401


async def test_who_shows_nothing_is_told_how_to(gateway: RunningGateway) -> None:
    async with gateway.session.post(f"{gateway.url}/v1/chat/completions", json=HELLO) as answer:
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="mandate"')


@pytest.mark.parametrize("scope", ["", "openid", f"{SCOPE}.read", SCOPE.upper()])
async def test_a_token_without_the_scope_is_told_which(mesh: Mesh, gateway: RunningGateway, scope: str) -> None:
    answer = await gateway.ask(token_of(await mesh.tenant(), scope=scope), HELLO)
    assert (answer.status, answer.code) == (403, "insufficient_scope")
    assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{SCOPE}"'


async def test_a_token_that_was_good_ends_with_its_time(mesh: Mesh, gateway: RunningGateway) -> None:
    tenant = await mesh.tenant()
    expires = now() + timedelta(seconds=1)
    token = token_of(tenant, exp=expires.timestamp())
    assert (await gateway.ask(token, HELLO)).status == 200
    await asyncio.sleep(max(0.0, (expires - now()).total_seconds()))
    answer = await gateway.ask(token, HELLO)
    assert (answer.status, answer.code) == (401, "invalid_api_key")


async def test_a_suspended_agents_token_is_refused_everywhere_within_a_second(
    mesh: Mesh, gateway: RunningGateway, tmp_path: Path
) -> None:
    tenant = await mesh.tenant()
    token = token_of(tenant)
    async with gateway_running(mesh, tmp_path) as second:
        gateways = (gateway, second)
        assert [(await each.ask(token, HELLO)).status for each in gateways] == [200, 200]
        await suspend(tenant)
        started_ms = monotonic_ms()
        for each in gateways:
            while (answer := await each.ask(token, HELLO)).status != 403:
                assert answer.status == 200
                assert monotonic_ms() - started_ms < 1_000
            assert answer.code == "agent_suspended"
        assert monotonic_ms() - started_ms < 1_000


async def test_without_identity_a_known_token_is_good_for_under_a_second(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant()
    known, unknown = token_of(tenant), token_of(tenant)
    async with cable(mesh.runtime.identity_address) as line:
        runtime = dataclasses.replace(mesh.runtime, identity_address=line.address)
        async with gateway_running(dataclasses.replace(mesh, runtime=runtime), tmp_path) as gateway:
            assert (await gateway.ask(known, HELLO)).status == 200
            line.unplug()
            assert (await gateway.ask(known, HELLO)).status == 200
            answer = await gateway.ask(unknown, HELLO)
            assert (answer.status, answer.code) == (503, "identity_unavailable")
            await asyncio.sleep(0.8)
            answer = await gateway.ask(known, HELLO)
            assert (answer.status, answer.code) == (503, "identity_unavailable")


class CountedKeys(tokens.KeySource):
    """Identity's keys, and how often one was asked for: once for each signature that is verified."""

    def __init__(self, mesh: Mesh) -> None:
        self._keys = mesh.identity.keys
        self.asked = 0
        self.away = False

    async def public_key(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        self.asked += 1
        if self.away:
            raise Unavailable("SERVICE_UNAVAILABLE", "a service of the mesh is not there")
        return await self._keys.public_key(key_id)


@dataclasses.dataclass
class Watched:
    """A directory that follows identity, and the keys it verifies with."""

    directory: Directory
    keys: CountedKeys

    async def who(self, token: str) -> str:
        agent = await self.directory.who_holds(Secret(token), hashlib.sha256(token.encode()).digest())
        return agent.token_id

    async def known(self, *texts: str) -> int:
        """Know these tokens beyond what the watch still tells of their tenant's making; return the keys asked for."""
        asked = -1
        while asked != self.keys.asked:
            asked = self.keys.asked
            for text in texts:
                await self.who(text)
            await asyncio.sleep(0.3)  # longer than a beat
        return asked


@pytest.fixture
async def watched(mesh: Mesh) -> AsyncIterator[Watched]:
    keys = CountedKeys(mesh)
    async with mesh.house.channel("identity", mesh.runtime.identity_address, as_service="gateway") as channel:
        directory = Directory(channel, keys, SystemClock())
        following = asyncio.ensure_future(directory.run())
        try:
            for _ in range(500):
                if directory.fresh:
                    break
                await asyncio.sleep(0.01)
            yield Watched(directory, keys)
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def test_a_token_is_verified_once_while_nothing_changes(mesh: Mesh, watched: Watched) -> None:
    token = token_of(await mesh.tenant(0), jti="tok-once")
    asked = await watched.known(token)
    assert [await watched.who(token) for _ in range(50)] == ["tok-once"] * 50
    assert watched.keys.asked == asked


async def test_a_bad_token_is_verified_once_in_a_while(mesh: Mesh, watched: Watched) -> None:
    bad = stranger(issuer(mesh).signer.key_id).token(ids.new(ids.Kind.AGENT), now())
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await watched.who(bad)
    assert watched.keys.asked == 1


async def test_without_identitys_keys_a_token_is_neither_good_nor_bad(mesh: Mesh, watched: Watched) -> None:
    token = token_of(await mesh.tenant(0), jti="tok-later")
    watched.keys.away = True
    with pytest.raises(Unavailable, match="identity cannot be asked"):
        await watched.who(token)
    watched.keys.away = False
    assert await watched.who(token) == "tok-later"


async def test_a_change_of_the_tokens_own_id_drops_it(mesh: Mesh, watched: Watched) -> None:
    tenant = await mesh.tenant(0)
    token, other = token_of(tenant, jti=fresh("tok")), token_of(tenant, jti=fresh("tok"))
    asked = await watched.known(token, other)
    async with mesh.identity.db.transaction() as tx:
        await changes.record(tx, tenant.family.organization_id, await watched.who(token), now())
    for _ in range(200):
        await watched.who(token)
        if watched.keys.asked > asked:
            break
        await asyncio.sleep(0.01)
    await watched.who(other)
    assert watched.keys.asked == asked + 1


async def test_a_token_is_verified_anew_after_five_minutes(
    mesh: Mesh, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(await mesh.tenant(0))
    asked = await watched.known(token)
    monkeypatch.setattr("gateway_svc.who.TOKEN_MS_MAX", 50)
    watched.directory.forget(hashlib.sha256(token.encode()).digest())
    await watched.who(token)
    await asyncio.sleep(0.06)
    await watched.who(token)
    assert watched.keys.asked == asked + 2

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from mandate.identity.v1 import directory_pb2
from mandate.identity.v1 import keys_pb2 as pb
from mesh import ids
from mesh.caller import acting
from mesh.client import call
from mesh.clock import SetClock, SystemClock
from mesh.errors import InvalidArgument
from mesh.testing import House
from tests.services.identity_running import Running, as_owner, fresh, identity_running


@pytest.fixture(scope="module")
async def identity(house: House) -> AsyncIterator[Running]:
    async with identity_running(house) as running:
        yield running


async def resolve(identity: Running, plaintext: str) -> pb.ResolveApiKeyResponse:
    digest = hashlib.sha256(plaintext.encode()).digest()
    return await call(identity.gateway_keys.ResolveApiKey, pb.ResolveApiKeyRequest(key_sha256=digest))


async def test_a_key_is_shown_once_and_kept_as_a_digest(house: House, identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    request = pb.IssueApiKeyRequest(agent_id=family.agent_id, name="laptop", request_id=fresh())
    with acting(await identity.caller_of(session)):
        issued = await call(identity.keys.IssueApiKey, request)
        again = await call(identity.keys.IssueApiKey, request)
    assert issued.plaintext.startswith("cpk_")
    assert len(issued.plaintext) == 47
    assert issued.api_key.prefix == issued.plaintext[:12]
    assert (again.api_key, again.plaintext, again.replayed) == (issued.api_key, "", True)
    async with as_owner(house) as owner:
        kept = await owner.fetchval("SELECT key_sha256 FROM api_keys WHERE id = $1", issued.api_key.id)
        rows = [str(row) for table in ("api_keys", "requests") for row in await owner.fetch(f"SELECT * FROM {table}")]  # noqa: S608
    assert kept == hashlib.sha256(issued.plaintext.encode()).digest()
    assert not [row for row in rows if issued.plaintext[4:] in row]


async def test_a_key_resolves_to_its_agent_and_all_above(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    issued = await identity.issue(session, family.agent_id)
    found = await resolve(identity, issued.plaintext)
    node = await call(identity.gateway_directory.ResolveNode, directory_pb2.ResolveNodeRequest(node_id=family.agent_id))
    assert (found.usable, found.api_key_id, found.agent) == (True, issued.api_key.id, node)
    assert found.agent_state == directory_pb2.AGENT_STATE_ACTIVE
    assert found.revision >= node.path_version


async def test_an_unknown_key_is_not_usable_as_of_a_revision(identity: Running) -> None:
    await identity.organization(await identity.sign_up())
    found = await resolve(identity, "cpk_" + "x" * 43)
    assert found == pb.ResolveApiKeyResponse(usable=False, revision=found.revision)
    assert found.revision > 0


async def test_a_revoked_key_stays_revoked(identity: Running) -> None:
    session = await identity.sign_up()
    issued = await identity.issue(session, (await identity.family(session)).agent_id)
    before = await resolve(identity, issued.plaintext)
    with acting(await identity.caller_of(session)):
        answers = [
            await call(
                identity.keys.RevokeApiKey,
                pb.RevokeApiKeyRequest(api_key_id=issued.api_key.id, request_id=fresh()),
            )
            for _ in range(2)
        ]
    assert answers[0].HasField("revoke_time")
    assert answers[0] == answers[1]
    after = await resolve(identity, issued.plaintext)
    assert (after.usable, after.revision > before.revision) == (False, True)


async def test_a_suspended_agents_key_says_so(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    issued = await identity.issue(session, family.agent_id)
    with acting(await identity.caller_of(session)):
        suspend = directory_pb2.SuspendAgentRequest(agent_id=family.agent_id, request_id=fresh())
        await call(identity.directory.SuspendAgent, suspend)
    found = await resolve(identity, issued.plaintext)
    assert (found.usable, found.agent_state) == (True, directory_pb2.AGENT_STATE_SUSPENDED)


async def resolve_agent(identity: Running, agent_id: str, token_id: str) -> pb.ResolveAgentResponse:
    request = pb.ResolveAgentRequest(agent_id=agent_id, token_id=token_id)
    return await call(identity.gateway_keys.ResolveAgent, request)


async def test_an_agent_stands_where_its_key_says(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    by_key = await resolve(identity, (await identity.issue(session, family.agent_id)).plaintext)
    found = await resolve_agent(identity, family.agent_id, fresh("tok"))
    assert found == pb.ResolveAgentResponse(
        usable=True, agent=by_key.agent, agent_state=by_key.agent_state, revision=found.revision
    )
    assert found.revision >= by_key.revision > 0


async def test_a_suspended_agent_is_suspended_as_of_a_later_revision(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    before = await resolve_agent(identity, family.agent_id, fresh("tok"))
    with acting(await identity.caller_of(session)):
        suspend = directory_pb2.SuspendAgentRequest(agent_id=family.agent_id, request_id=fresh())
        await call(identity.directory.SuspendAgent, suspend)
    after = await resolve_agent(identity, family.agent_id, fresh("tok"))
    assert (after.usable, after.agent_state) == (True, directory_pb2.AGENT_STATE_SUSPENDED)
    assert after.revision > before.revision


async def test_an_unknown_agent_is_not_usable_as_of_a_revision(identity: Running) -> None:
    await identity.organization(await identity.sign_up())
    found = await resolve_agent(identity, ids.new(ids.Kind.AGENT), fresh("tok"))
    assert found == pb.ResolveAgentResponse(usable=False, revision=found.revision)
    assert found.revision > 0


@pytest.mark.parametrize(
    ("field", "agent_id", "token_id"),
    [
        ("agent_id", "", "tok-1"),
        ("agent_id", "ws_01m7zfb09zkapmanfjgnprcyah", "tok-1"),
        ("agent_id", "agt_0\0", "tok-1"),
        ("token_id", "agt_01m7zfb09z8wmvd3dhe4ysbfmd", ""),
        ("token_id", "agt_01m7zfb09z8wmvd3dhe4ysbfmd", "x" * 257),
    ],
)
async def test_a_question_for_no_agent_names_its_field(
    identity: Running, field: str, agent_id: str, token_id: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await resolve_agent(identity, agent_id, token_id)
    assert refused.value.details["field"] == field


async def test_a_key_expires_on_time_and_its_replay_does_not(house: House) -> None:
    clock = SetClock(SystemClock().now())
    async with identity_running(house, clock=clock) as identity:
        session = await identity.sign_up()
        family = await identity.family(session)
        expires = Timestamp()
        expires.FromDatetime(clock.now() + timedelta(minutes=1))
        request = pb.IssueApiKeyRequest(agent_id=family.agent_id, name="short", expire_time=expires, request_id=fresh())
        with acting(await identity.caller_of(session)):
            issued = await call(identity.keys.IssueApiKey, request)
            assert (await resolve(identity, issued.plaintext)).expire_time == expires
            clock.move(timedelta(minutes=1))
            assert not (await resolve(identity, issued.plaintext)).usable
            assert (await call(identity.keys.IssueApiKey, request)).replayed


@pytest.mark.parametrize(
    ("field", "name", "expires"),
    [
        ("name", "", None),
        ("name", "x" * 201, None),
        ("expire_time", "laptop", Timestamp(seconds=1)),
        ("expire_time", "laptop", Timestamp(seconds=10**15)),
    ],
)
async def test_a_bad_key_request_names_its_field(
    identity: Running, field: str, name: str, expires: Timestamp | None
) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    request = pb.IssueApiKeyRequest(agent_id=family.agent_id, name=name, expire_time=expires, request_id=fresh())
    with acting(await identity.caller_of(session)), pytest.raises(InvalidArgument) as refused:
        await call(identity.keys.IssueApiKey, request)
    assert refused.value.details["field"] == field


async def test_a_digest_of_another_length_is_refused(identity: Running) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await call(identity.gateway_keys.ResolveApiKey, pb.ResolveApiKeyRequest(key_sha256=b"short"))
    assert refused.value.details["field"] == "key_sha256"


async def test_keys_are_listed_newest_first(identity: Running) -> None:
    session = await identity.sign_up()
    family = await identity.family(session)
    made = [(await identity.issue(session, family.agent_id)).api_key.id for _ in range(5)]
    found: list[str] = []
    request = pb.ListApiKeysRequest(agent_id=family.agent_id, page_size=2)
    with acting(await identity.caller_of(session)):
        while True:
            page = await call(identity.keys.ListApiKeys, request)
            found += [key.id for key in page.api_keys]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    assert found == sorted(made, reverse=True)

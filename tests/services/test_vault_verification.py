"""IdentityKeys against a stand-in for identity's KeyService over the real wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mandate.identity.v1 import keys_pb2 as pb
from mandate.identity.v1 import keys_pb2_grpc as rpc
from mesh import ids, tokens
from mesh.chain.access import organizations_only
from mesh.errors import Unavailable
from mesh.server import Registration
from mesh.testing import House, TestIssuer
from mesh.verification import FETCH_EVERY_MS_MIN, FRESH_MS, KEYS_MAX, USABLE_MS_MAX, IdentityKeys

SERVICE = pb.DESCRIPTOR.services_by_name["KeyService"]


def jwk() -> str:
    return tokens.public_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())


@dataclass
class Identity:
    """What the stand-in publishes, and how often it was asked."""

    published: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    away: bool = False
    now_ms: float = 0.0

    async def answer(self, _request: pb.ListVerificationKeysRequest, _context: Any) -> pb.ListVerificationKeysResponse:
        self.asked += 1
        if self.away:
            raise Unavailable("DATABASE_UNAVAILABLE", "away")
        await asyncio.sleep(0.01)
        keys = [pb.VerificationKey(key_id=key_id, jwk=text) for key_id, text in self.published.items()]
        return pb.ListVerificationKeysResponse(keys=keys)


@pytest.fixture
def identity() -> Identity:
    return Identity({"k1": jwk()})


@pytest.fixture
async def keys(house: House, issuer: TestIssuer, identity: Identity) -> AsyncIterator[IdentityKeys]:
    servicer = SimpleNamespace(**{method.name: identity.answer for method in SERVICE.methods})
    registration = Registration(SERVICE, rpc.add_KeyServiceServicer_to_server, servicer)
    async with (
        house.serving("identity", [registration], issuer, organizations_only) as address,
        house.channel("identity", address, as_service="vault") as channel,
    ):
        found = IdentityKeys(channel, now_ms=lambda: identity.now_ms)
        yield found
        await found.close()


async def test_nothing_is_fetched_until_a_key_is_asked_for(keys: IdentityKeys, identity: Identity) -> None:
    assert identity.asked == 0
    assert await keys.public_key("k1") is not None


async def test_callers_at_once_share_one_fetch(keys: IdentityKeys, identity: Identity) -> None:
    found = await asyncio.gather(*(keys.public_key("k1") for _ in range(50)))
    assert None not in found
    assert identity.asked == 1


async def test_an_unknown_key_id_is_looked_up_at_most_once_a_second(keys: IdentityKeys, identity: Identity) -> None:
    await keys.public_key("k1")
    for number in range(20):
        assert await keys.public_key(f"made-up-{number}") is None
    assert identity.asked == 1
    identity.now_ms += FETCH_EVERY_MS_MIN
    identity.published["k2"] = jwk()
    assert await keys.public_key("k2") is not None
    assert identity.asked == 2


async def test_old_keys_are_refreshed_behind_a_call_that_they_still_serve(
    keys: IdentityKeys, identity: Identity
) -> None:
    before = await keys.public_key("k1")
    identity.published = {"k1": jwk()}
    identity.now_ms += FRESH_MS
    assert await keys.public_key("k1") is before
    async with asyncio.timeout(5):
        while await keys.public_key("k1") is before:  # noqa: ASYNC110  # what is awaited is the answer itself
            await asyncio.sleep(0.005)
    assert identity.asked == 2


async def test_a_withdrawn_key_is_not_used_once_that_is_known(keys: IdentityKeys, identity: Identity) -> None:
    await keys.public_key("k1")
    identity.published = {"k2": jwk()}
    identity.now_ms += FETCH_EVERY_MS_MIN
    assert await keys.public_key("k2") is not None
    assert await keys.public_key("k1") is None


async def test_without_identity_known_keys_serve_for_a_while_and_unknown_ones_never(
    keys: IdentityKeys, identity: Identity
) -> None:
    await keys.public_key("k1")
    identity.away = True
    identity.now_ms += USABLE_MS_MAX - 1
    assert await keys.public_key("k1") is not None
    with pytest.raises(Unavailable):
        await keys.public_key("k2")
    identity.now_ms += 1
    with pytest.raises(Unavailable):
        await keys.public_key("k1")


async def test_a_caller_that_goes_away_does_not_end_the_fetch_for_others(
    keys: IdentityKeys, identity: Identity
) -> None:
    impatient = asyncio.create_task(keys.public_key("k1"))
    patient = asyncio.create_task(keys.public_key("k1"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient is not None
    assert identity.asked == 1


async def test_a_key_that_cannot_be_read_does_not_hide_the_others(keys: IdentityKeys, identity: Identity) -> None:
    rsa = '{"kty": "RSA", "n": "AQAB", "e": "AQAB"}'
    identity.published |= {"bad": "{", "empty": "{}", "rsa": rsa, "list": "[]", "k2": jwk()}
    assert await keys.public_key("k2") is not None
    identity.now_ms += FETCH_EVERY_MS_MIN
    assert [await keys.public_key(name) for name in ("bad", "empty", "rsa", "list")] == [None] * 4


async def test_no_more_keys_are_kept_than_can_be_in_use(keys: IdentityKeys, identity: Identity) -> None:
    identity.published = {f"k{number}": jwk() for number in range(KEYS_MAX + 1)}
    assert await keys.public_key("k0") is not None
    assert await keys.public_key(f"k{KEYS_MAX}") is None


async def test_a_token_signed_with_a_fetched_key_verifies(
    keys: IdentityKeys, identity: Identity, issuer: TestIssuer
) -> None:
    identity.published = {issuer.key_id: issuer.jwk}
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    person = issuer.person(**{organization_id: "owner"}).person
    assert person is not None
    assert await tokens.verify(person.token, keys) == person

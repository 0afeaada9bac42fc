"""KeyService: agents' API keys and where agents stand, what changed, and the public keys of mesh tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from identity_svc import bearers, wire
from identity_svc.directory import check_expiry
from identity_svc.names import name_of
from identity_svc.signing import SigningKeys
from identity_svc.store import api_keys as store
from identity_svc.store.hierarchy import organization_of
from identity_svc.worker import Hub
from mandate.identity.v1 import keys_pb2 as pb
from mandate.identity.v1 import keys_pb2_grpc as rpc
from mesh import ids
from mesh.audit import Fact
from mesh.chain import Context
from mesh.clock import Clock
from mesh.db import Connection, Database
from mesh.errors import NotFound, invalid
from mesh.idempotency import once
from mesh.paging import next_token, page_of

TOKEN_ID_CHARACTERS_MAX = 256


class KeyServicer(rpc.KeyServiceServicer):
    """Implements mandate.identity.v1.KeyService."""

    def __init__(self, db: Database, clock: Clock, keys: SigningKeys, hub: Hub, pepper: bytes) -> None:
        self._db = db
        self._clock = clock
        self._keys = keys
        self._hub = hub
        self._pepper = pepper

    async def IssueApiKey(self, request: pb.IssueApiKeyRequest, context: Context) -> pb.IssueApiKeyResponse:
        name = name_of(request.name)
        expires_at = wire.moment(request.expire_time, "expire_time") if request.HasField("expire_time") else None
        organization_id = await self._organization(request.agent_id, "agent_id")

        async def make(tx: Connection) -> pb.IssueApiKeyResponse:
            now = self._clock.now()
            check_expiry(expires_at, now)  # in here: a replay after the expiry is still a replay
            bearer = bearers.mint(bearers.Prefix.API_KEY)
            key = store.new(request.agent_id, name, bearers.shown(bearer), now, expires_at)
            added = await store.add(tx, key, bearers.digest(bearer))
            if added is None:
                raise NotFound("NOT_FOUND", "no such agent_id", field="agent_id")
            return pb.IssueApiKeyResponse(api_key=wire.api_key(added), plaintext=bearer.reveal())

        def fact(made: pb.IssueApiKeyResponse) -> Fact:
            return Fact(organization_id, "api_key.issued", made.api_key.id, {"agent_id": made.api_key.agent_id})

        issued = await once(self._db, request, pb.IssueApiKeyResponse, make, audited=fact, pepper=self._pepper)
        issued.answer.replayed = issued.replayed
        return issued.answer

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        page = page_of(request.page_size, request.page_token)
        found = await store.of_agent(self._db, request.agent_id, page)
        return pb.ListApiKeysResponse(
            api_keys=[wire.api_key(item) for item in found[: page.size]],
            next_page_token=next_token(page, [item.id for item in found]),
        )

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Context) -> pb.ApiKey:
        organization_id = await self._organization(request.api_key_id, "api_key_id")

        async def make(tx: Connection) -> pb.ApiKey:
            revoked = await store.revoke(tx, request.api_key_id, self._clock.now())
            if revoked is None:
                raise NotFound("NOT_FOUND", "no such api_key_id", field="api_key_id")
            return wire.api_key(revoked)

        def fact(revoked: pb.ApiKey) -> Fact:
            return Fact(organization_id, "api_key.revoked", revoked.id, {"agent_id": revoked.agent_id})

        return (await once(self._db, request, pb.ApiKey, make, audited=fact, pepper=self._pepper)).answer

    async def ResolveApiKey(self, request: pb.ResolveApiKeyRequest, context: Context) -> pb.ResolveApiKeyResponse:
        if len(request.key_sha256) != bearers.DIGEST_BYTES:
            raise invalid("key_sha256", f"must have {bearers.DIGEST_BYTES} bytes")
        return wire.resolved(await store.resolve(self._db, request.key_sha256, self._clock.now()))

    async def ResolveAgent(self, request: pb.ResolveAgentRequest, context: Context) -> pb.ResolveAgentResponse:
        if ids.kind_of(request.agent_id) is not ids.Kind.AGENT:
            raise invalid("agent_id", "must be agt_…")
        if not 0 < len(request.token_id) <= TOKEN_ID_CHARACTERS_MAX:
            raise invalid("token_id", f"must have 1 to {TOKEN_ID_CHARACTERS_MAX} characters")
        return wire.agent_standing(await store.resolve_agent(self._db, request.agent_id))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        if request.cursor < 0:
            raise invalid("cursor", "must not be negative")
        async with aclosing(self._hub.watch(request.cursor)) as beats:
            async for beat in beats:
                yield wire.beat(beat)

    async def ListVerificationKeys(
        self, request: pb.ListVerificationKeysRequest, context: Context
    ) -> pb.ListVerificationKeysResponse:
        published = await self._keys.published()
        keys = [pb.VerificationKey(key_id=key_id, jwk=jwk) for key_id, jwk in published.items()]
        return pb.ListVerificationKeysResponse(keys=keys)

    async def _organization(self, object_id: str, field: str) -> str:
        organization_id = await organization_of(self._db, object_id)
        if organization_id is None:
            raise NotFound("NOT_FOUND", f"no such {field}", field=field)
        return organization_id

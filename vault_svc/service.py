"""The vault's RPCs: seal, list and destroy credentials, and lend the one in use to the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from mandate.vault.v1 import credentials_pb2 as pb
from mandate.vault.v1 import credentials_pb2_grpc as rpc
from mesh import audit, caller, idempotency, ids, paging
from mesh.chain.access import ScopeResolver
from mesh.db import Connection, Database
from mesh.errors import NotFound, invalid
from mesh.secret import Secret
from mesh.server import Registration
from mesh.telemetry import logs
from vault_svc import credentials, store, wire
from vault_svc.tenants import TenantKeys

Context = grpc.aio.ServicerContext[Any, Any]

log = logs.get(__name__)


class CredentialService(rpc.CredentialServiceServicer):
    """Provider keys of organizations."""

    def __init__(self, db: Database, keys: TenantKeys, *, lease_ms: int) -> None:
        self._db = db
        self._keys = keys
        self._lease_ms = lease_ms

    async def AddCredential(self, request: pb.AddCredentialRequest, context: Context) -> pb.Credential:
        idempotency.check_request_id(request)
        offered = credentials.check(request.provider, Secret(request.secret), request.label, request.base_url)
        key = await self._keys.newest(request.organization_id)
        actor = caller.current().actor

        async def add(tx: Connection) -> pb.Credential:
            new_id = ids.new(ids.Kind.CREDENTIAL)
            sealed = key.seal(offered.secret, _record(new_id, provider=offered.provider, base_url=offered.base_url))
            new = store.NewCredential(new_id, key.organization_id, offered, sealed, key.version, actor)
            return wire.credential(await store.add_credential(tx, new))

        return await self._once("credential.added", request, key.organization_id, add)

    async def ListCredentials(self, request: pb.ListCredentialsRequest, context: Context) -> pb.ListCredentialsResponse:
        page = paging.page_of(request.page_size, request.page_token)
        found = await store.list_credentials(self._db, request.organization_id, page)
        return pb.ListCredentialsResponse(
            credentials=map(wire.credential, found[: page.size]),
            next_page_token=paging.next_token(page, [credential.id for credential in found]),
        )

    async def RemoveCredential(self, request: pb.RemoveCredentialRequest, context: Context) -> pb.Credential:
        organization_id = await _organization_of(self._db, request.credential_id)
        actor = caller.current().actor

        async def remove(tx: Connection) -> pb.Credential:
            removed = await store.remove_credential(tx, request.credential_id, actor)
            if removed is None:
                raise _unknown(request.credential_id)
            return wire.credential(removed)

        return await self._once("credential.removed", request, organization_id, remove)

    async def OpenCredential(self, request: pb.OpenCredentialRequest, context: Context) -> pb.OpenCredentialResponse:
        if ids.kind_of(request.organization_id) is not ids.Kind.ORGANIZATION:
            raise invalid("organization_id", "must be the id of an organization")
        provider = credentials.provider_of(request.provider)
        found = await store.credential_in_use(self._db, request.organization_id, provider)
        if found is None:
            return pb.OpenCredentialResponse(lease_ms=self._lease_ms)
        key = await self._keys.opened(found.key)
        secret = key.open(found.sealed, _record(found.id, provider=provider, base_url=found.base_url))
        return wire.lease(found, secret, self._lease_ms)

    async def _once(
        self,
        event: str,
        request: pb.AddCredentialRequest | pb.RemoveCredentialRequest,
        organization_id: str,
        make: Callable[[Connection], Awaitable[pb.Credential]],
    ) -> pb.Credential:
        pepper = await self._keys.pepper(organization_id)

        def fact(made: pb.Credential) -> audit.Fact:
            return audit.Fact(made.organization_id, event, made.id, {"provider": made.provider})

        done = await idempotency.once(self._db, request, pb.Credential, make, audited=fact, pepper=pepper)
        if not done.replayed:
            answer, actor = done.answer, caller.current().actor
            log.event(event, credential=answer.id, organization=organization_id, provider=answer.provider, actor=actor)
        return done.answer


def registrations(db: Database, keys: TenantKeys, *, lease_ms: int) -> list[Registration]:
    """Return what the vault serves."""
    return [Registration.of(pb, rpc, CredentialService(db, keys, lease_ms=lease_ms))]


def resolver(db: Database) -> ScopeResolver:
    """Return what says whose an object of the vault is."""

    async def resolve(object_id: str) -> str | None:
        match ids.kind_of(object_id):
            case ids.Kind.ORGANIZATION:
                return object_id
            case ids.Kind.CREDENTIAL:
                return await store.organization_of(db, object_id)
            case _:
                return None

    return resolve


def _record(credential_id: str, *, provider: str, base_url: str) -> tuple[str, ...]:
    """Return what a sealed secret is bound to; with the address in it, no edited row sends the secret elsewhere."""
    return ("credentials", credential_id, "provider-secret", provider, base_url)


async def _organization_of(db: Database, credential_id: str) -> str:
    organization_id = await store.organization_of(db, credential_id)
    if organization_id is None:
        raise _unknown(credential_id)
    return organization_id


def _unknown(credential_id: str) -> NotFound:
    return NotFound("NOT_FOUND", f"no credential {credential_id!r}", field="credential_id")

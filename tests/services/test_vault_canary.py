"""A planted secret is looked for everywhere that it must not be: database, logs, errors."""

from __future__ import annotations

import hashlib
import io
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg
import pytest

from mandate.vault.v1 import credentials_pb2 as pb
from mandate.vault.v1 import credentials_pb2_grpc as rpc
from mesh import caller, client, db, idempotency, ids
from mesh.errors import MeshError
from mesh.secret import Secret
from mesh.telemetry.logs import JsonFormatter
from mesh.testing import House, TestIssuer
from vault_svc import credentials, service
from vault_svc.keyring import Keyring
from vault_svc.root import LocalRootKeys
from vault_svc.tenants import TenantKeys

ROOT = hashlib.sha256(b"root key of the vault's tests").digest()
CANARY = "sk-canary-4f1d9a7be2c05388"


@dataclass
class Planted:
    edge: rpc.CredentialServiceAsyncStub
    gateway: rpc.CredentialServiceAsyncStub
    keys: TenantKeys
    organization_id: str


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything that is logged, at the finest level, as the services write it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
async def planted(house: House, issuer: TestIssuer) -> AsyncIterator[Planted]:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    async with db.connect(house.dsn("vault"), service="vault") as database:
        keys = TenantKeys(database, LocalRootKeys(Keyring("k1", {"k1": ROOT})))
        registrations = service.registrations(database, keys, lease_ms=5_000)
        async with (
            house.serving("vault", registrations, issuer, service.resolver(database)) as address,
            house.channel("vault", address, as_service="edge") as edge,
            house.channel("vault", address, as_service="gateway") as gateway,
        ):
            stubs = (rpc.CredentialServiceStub(edge), rpc.CredentialServiceStub(gateway))
            with caller.acting(issuer.person(**{organization_id: "owner"})):
                yield Planted(*stubs, keys, organization_id)


def adding(planted: Planted, **fields: str) -> pb.AddCredentialRequest:
    fields = {"secret": CANARY, "provider": "openai", "request_id": "canary"} | fields
    return pb.AddCredentialRequest(organization_id=planted.organization_id, **fields)


async def test_the_secret_is_in_no_row_of_the_vaults_schema(house: House, planted: Planted) -> None:
    added = await client.call(planted.edge.AddCredential, adding(planted))
    root_key, tenant_key = ROOT, (await planted.keys.newest(planted.organization_id)).key
    owner = await asyncpg.connect(house.owner_dsn.reveal())
    try:
        tables = await owner.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'vault'")
        dumps = [
            "\n".join(row[0] for row in await owner.fetch(f"SELECT t::text FROM vault.{table[0]} AS t"))  # noqa: S608
            for table in tables
        ]
    finally:
        await owner.close()
    dump = "\n".join(dumps)
    assert added.id in dump
    for secret in (CANARY.encode(), CANARY[3:].encode(), root_key, tenant_key):
        assert secret.hex() not in dump
        assert secret.decode("latin-1") not in dump


async def test_the_secret_is_in_no_log_line(written: io.StringIO, planted: Planted) -> None:
    request = adding(planted)
    added = await client.call(planted.edge.AddCredential, request)
    await client.call(planted.edge.AddCredential, request)
    lent = await client.call(
        planted.gateway.OpenCredential,
        pb.OpenCredentialRequest(organization_id=planted.organization_id, provider="openai"),
    )
    removal = pb.RemoveCredentialRequest(credential_id=added.id, request_id="canary")
    await client.call(planted.edge.RemoveCredential, removal)
    assert lent.secret == CANARY
    assert "credential.added" in written.getvalue()
    assert CANARY not in written.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"secret": f"{CANARY} with a space"},
        {"provider": "elsewhere"},
        {"label": "a" * 101},
        {"base_url": "https://localhost"},
        {"request_id": ""},
        {"organization_id": "org_unknown"},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_the_secret_is_in_no_error(planted: Planted, written: io.StringIO, fields: dict[str, str]) -> None:
    request = adding(planted)
    for name, value in fields.items():
        setattr(request, name, value)
    with pytest.raises(MeshError) as refused:
        await client.call(planted.edge.AddCredential, request)
    error = refused.value
    told = [str(error), repr(error), str(error.details), written.getvalue()]
    assert not [text for text in told if CANARY in text]


async def test_the_secret_is_in_no_error_of_a_request_that_differs(planted: Planted) -> None:
    await client.call(planted.edge.AddCredential, adding(planted, secret="sk-another-one"))
    with pytest.raises(MeshError) as refused:
        await client.call(planted.edge.AddCredential, adding(planted))
    assert CANARY not in "".join(traceback.format_exception(refused.value)[-1:])
    assert "sk-another-one" not in str(refused.value)


def test_the_secret_is_in_no_repr_of_what_is_checked_or_kept() -> None:
    offered = credentials.check("openai", Secret(CANARY), "", "")
    assert CANARY not in repr(offered)
    request = pb.AddCredentialRequest(secret=CANARY, label="ours")
    assert CANARY not in str(idempotency.without_secrets(request))

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from mandate.vault.v1 import credentials_pb2 as pb
from mandate.vault.v1 import credentials_pb2_grpc as rpc
from mesh import caller, client, db, ids
from mesh.errors import AlreadyExists, Internal, InvalidArgument, NotFound, PermissionDenied
from mesh.settings import SettingsError
from mesh.testing import House, TestIssuer
from vault_svc import root, service
from vault_svc.keyring import Keyring
from vault_svc.tenants import TTL_MS, TenantKeys

LEASE_MS = 5_000
SECRET = "sk-0123456789"
SERVICE = pb.DESCRIPTOR.services_by_name["CredentialService"]


@dataclass
class Vault:
    edge: rpc.CredentialServiceAsyncStub
    gateway: rpc.CredentialServiceAsyncStub
    database: db.Database
    keys: TenantKeys
    owner: asyncpg.Connection


def keyring(**keys: bytes) -> root.LocalRootKeys:
    return root.LocalRootKeys(Keyring(next(iter(keys)), keys))


ROOT = hashlib.sha256(b"root key of the vault's tests").digest()


@pytest.fixture(scope="module")
async def vault(house: House, issuer: TestIssuer) -> AsyncIterator[Vault]:
    async with db.connect(house.dsn("vault"), service="vault") as database:
        keys = TenantKeys(database, keyring(k1=ROOT))
        registrations = service.registrations(database, keys, lease_ms=LEASE_MS)
        resolve = service.resolver(database)
        async with (
            house.serving("vault", registrations, issuer, resolve) as address,
            house.channel("vault", address, as_service="edge", services=[SERVICE]) as edge,
            house.channel("vault", address, as_service="gateway", services=[SERVICE]) as gateway,
        ):
            owner = await asyncpg.connect(house.owner_dsn.reveal())
            stubs = (rpc.CredentialServiceStub(edge), rpc.CredentialServiceStub(gateway))
            yield Vault(*stubs, database, keys, owner)
            await owner.close()


@pytest.fixture
def organization_id() -> str:
    return ids.new(ids.Kind.ORGANIZATION)


async def add(vault: Vault, organization_id: str, secret: str = SECRET, **fields: str) -> pb.Credential:
    fields = {"provider": "openai", "request_id": ids.new(ids.Kind.REQUEST)} | fields
    request = pb.AddCredentialRequest(organization_id=organization_id, secret=secret, **fields)
    return await client.call(vault.edge.AddCredential, request)


async def opened(vault: Vault, organization_id: str, provider: str = "openai") -> pb.OpenCredentialResponse:
    request = pb.OpenCredentialRequest(organization_id=organization_id, provider=provider)
    return await client.call(vault.gateway.OpenCredential, request)


async def remove(vault: Vault, credential_id: str) -> pb.Credential:
    request = pb.RemoveCredentialRequest(credential_id=credential_id, request_id=ids.new(ids.Kind.REQUEST))
    return await client.call(vault.edge.RemoveCredential, request)


async def test_the_gateway_is_lent_what_an_owner_added(vault: Vault, issuer: TestIssuer, organization_id: str) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        added = await add(vault, organization_id, "sk-our-own-key", label="ours", base_url="https://llm.example.com/")
    lent = await opened(vault, organization_id)
    assert (added.provider, added.label, added.hint) == ("openai", "ours", "-key")
    assert (lent.found, lent.credential_id, lent.secret) == (True, added.id, "sk-our-own-key")
    assert (lent.base_url, lent.lease_ms) == ("https://llm.example.com", LEASE_MS)


async def test_an_organization_without_a_key_of_its_own_is_told_so(vault: Vault, organization_id: str) -> None:
    assert await opened(vault, organization_id) == pb.OpenCredentialResponse(lease_ms=LEASE_MS)


async def test_the_newest_key_of_a_provider_is_in_use_and_a_removed_one_is_not(
    vault: Vault, issuer: TestIssuer, organization_id: str
) -> None:
    with caller.acting(issuer.person(**{organization_id: "admin"})):
        await add(vault, organization_id, "sk-older-key")
        newer = await add(vault, organization_id, "sk-newer-key")
        await add(vault, organization_id, "sk-ant-other", provider="anthropic")
        assert (await opened(vault, organization_id)).secret == "sk-newer-key"
        removed = await remove(vault, newer.id)
    assert removed.HasField("remove_time")
    assert (await opened(vault, organization_id)).secret == "sk-older-key"


async def test_removal_destroys_the_sealed_secret_keeps_the_record_and_happens_once(
    vault: Vault, issuer: TestIssuer, organization_id: str
) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        added = await add(vault, organization_id)
        first = await remove(vault, added.id)
        again = await remove(vault, added.id)
        listed = await client.call(
            vault.edge.ListCredentials, pb.ListCredentialsRequest(organization_id=organization_id)
        )
    assert again == first == listed.credentials[0]
    assert await vault.owner.fetchval("SELECT sealed FROM vault.credentials WHERE id = $1", added.id) is None


async def test_a_list_is_paged_newest_first(vault: Vault, issuer: TestIssuer, organization_id: str) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        added = [(await add(vault, organization_id)).id for _ in range(5)]
        seen: list[str] = []
        token = ""
        while True:
            request = pb.ListCredentialsRequest(organization_id=organization_id, page_size=2, page_token=token)
            page = await client.call(vault.edge.ListCredentials, request)
            assert len(page.credentials) <= 2
            seen += [credential.id for credential in page.credentials]
            if not (token := page.next_page_token):
                break
    assert seen == added[::-1]


async def test_the_same_request_id_adds_once(vault: Vault, issuer: TestIssuer, organization_id: str) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        first = await add(vault, organization_id, request_id="r1")
        assert await add(vault, organization_id, request_id="r1") == first
        with pytest.raises(AlreadyExists) as other:
            await add(vault, organization_id, "sk-another-secret", request_id="r1")
    assert other.value.details == {"field": "secret"}


async def test_a_request_id_is_still_known_after_the_root_key_was_rotated(
    vault: Vault, issuer: TestIssuer, organization_id: str
) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        await add(vault, organization_id)
    rotated = TenantKeys(vault.database, keyring(k2=os.urandom(32), k1=ROOT))
    assert await rotated.pepper(organization_id) == await vault.keys.pepper(organization_id)


@pytest.mark.parametrize("role", ["member", "billing", "viewer"])
async def test_a_role_that_may_only_read_lists_and_adds_nothing(
    vault: Vault, issuer: TestIssuer, organization_id: str, role: str
) -> None:
    with caller.acting(issuer.person(**{organization_id: role})):
        request = pb.ListCredentialsRequest(organization_id=organization_id)
        assert not (await client.call(vault.edge.ListCredentials, request)).credentials
        with pytest.raises(PermissionDenied):
            await add(vault, organization_id)


async def test_another_organizations_credential_is_one_that_does_not_exist(
    vault: Vault, issuer: TestIssuer, organization_id: str
) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        added = await add(vault, organization_id)
    with caller.acting(issuer.person(**{ids.new(ids.Kind.ORGANIZATION): "owner"})):
        with pytest.raises(NotFound) as foreign:
            await remove(vault, added.id)
        with pytest.raises(NotFound) as unknown:
            await remove(vault, ids.new(ids.Kind.CREDENTIAL))
    assert foreign.value.details == unknown.value.details
    assert (await opened(vault, organization_id)).found


async def test_the_edge_is_never_lent_a_secret(vault: Vault, issuer: TestIssuer, organization_id: str) -> None:
    request = pb.OpenCredentialRequest(organization_id=organization_id, provider="openai")
    with caller.acting(issuer.person(**{organization_id: "owner"})), pytest.raises(PermissionDenied):
        await client.call(vault.edge.OpenCredential, request)


@pytest.mark.parametrize(("organization", "provider"), [("", "openai"), ("acme", "openai"), ("org_x", "openai")])
async def test_what_names_no_organization_is_refused(vault: Vault, organization: str, provider: str) -> None:
    with pytest.raises(InvalidArgument):
        await opened(vault, organization, provider)


async def test_two_replicas_that_add_first_share_one_tenant_key(vault: Vault, organization_id: str) -> None:
    other = TenantKeys(vault.database, keyring(k1=ROOT))
    first, second = await vault.keys.newest(organization_id), await other.newest(organization_id)
    assert first == second


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE vault.credentials SET sealed = set_byte(sealed, 40, get_byte(sealed, 40) # 1) WHERE id = $1 OR id = $2",
        "UPDATE vault.credentials SET sealed = substr(sealed, 1, 20) WHERE id = $1 OR id = $2",
        "UPDATE vault.credentials AS a SET sealed = b.sealed FROM vault.credentials AS b WHERE a.id = $1 AND b.id = $2",
        "UPDATE vault.credentials SET base_url = 'https://thief.example' WHERE id = $1 OR id = $2",
        (
            "UPDATE vault.credentials AS a SET organization_id = b.organization_id FROM vault.credentials AS b"
            " WHERE b.id = $1 AND a.id = $2"
        ),
    ],
    ids=["bit flip", "cut", "row swap", "other address", "tenant swap"],
)
async def test_what_was_altered_or_moved_in_the_database_does_not_open(
    vault: Vault, issuer: TestIssuer, organization_id: str, tampering: str
) -> None:
    foreign_id = ids.new(ids.Kind.ORGANIZATION)
    with caller.acting(issuer.person(**{organization_id: "owner", foreign_id: "owner"})):
        mine = await add(vault, organization_id, "sk-mine-mine")
        foreign = await add(vault, foreign_id, "sk-foreign-foreign")
    await vault.owner.execute(tampering, mine.id, foreign.id)
    with pytest.raises(Internal) as broken:
        await opened(vault, organization_id)
    assert broken.value.reason == "SEAL_BROKEN"


async def test_a_secret_does_not_open_for_another_provider(
    vault: Vault, issuer: TestIssuer, organization_id: str
) -> None:
    with caller.acting(issuer.person(**{organization_id: "owner"})):
        added = await add(vault, organization_id)
    await vault.owner.execute("UPDATE vault.credentials SET provider = 'anthropic' WHERE id = $1", added.id)
    with pytest.raises(Internal):
        await opened(vault, organization_id, "anthropic")


async def test_a_tenant_key_is_kept_open_for_a_minute(vault: Vault, organization_id: str) -> None:
    now_ms = 0.0
    ring = {"k1": ROOT}
    keys = TenantKeys(vault.database, root.LocalRootKeys(Keyring("k1", ring)), now_ms=lambda: now_ms)
    key = await keys.newest(organization_id)
    ring.clear()
    now_ms = TTL_MS - 1
    assert await keys.newest(organization_id) == key
    now_ms = TTL_MS
    with pytest.raises(Exception, match="root key"):
        await keys.newest(organization_id)


@pytest.mark.parametrize("keys", [{"k0": ROOT}, {"k1": os.urandom(32)}], ids=["missing", "another"])
async def test_a_vault_whose_root_key_is_not_there_does_not_start(
    vault: Vault, organization_id: str, keys: dict[str, bytes]
) -> None:
    await vault.keys.newest(organization_id)
    await vault.keys.try_all_roots()
    with pytest.raises(SettingsError, match="'k1'"):
        await TenantKeys(vault.database, keyring(**keys)).try_all_roots()


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b"\xff", b'{"keys": [{"id": "k1", "key": "", "state": "primary"}]}']
)
def test_a_keyring_file_that_is_missing_or_bad_stops_the_start(house: House, content: bytes | None) -> None:
    path = house.home.path / f"keyring-{os.urandom(4).hex()}.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match="MANDATE_VAULT_KEYRING_FILE"):
        root.read(path)


async def test_a_keyring_file_is_read(house: House) -> None:
    path = house.home.path / "keyring-good.json"
    key = base64.b64encode(ROOT).decode()
    path.write_text(json.dumps({"keys": [{"id": "k1", "key": key, "state": "primary"}]}))
    wrapped = await root.read(path).wrap(b"k" * 32, ("a",))
    assert await keyring(k1=ROOT).unwrap(wrapped, ("a",)) == b"k" * 32


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM credentials",
        "UPDATE credentials SET hint = ''",
        "UPDATE tenant_keys SET wrapped = ''",
        "DELETE FROM tenant_keys",
        "UPDATE requests SET response = ''",
        "TRUNCATE credentials",
    ],
)
async def test_the_runtime_role_may_not_rewrite_the_record(vault: Vault, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await vault.database.execute(statement)

"""All SQL of the vault. What is sealed arrives here sealed."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.db import Connection, Database, Row
from mesh.paging import Page
from vault_svc.credentials import Credential, Offered
from vault_svc.root import Wrapped

ROOT_KEYS_MAX = 100


@dataclass(frozen=True, slots=True)
class TenantKeyRow:
    """A version of an organization's key, wrapped."""

    organization_id: str
    version: int
    wrapped: Wrapped


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """The credential in use for a provider, and the wrapped key that opens it."""

    id: str
    base_url: str
    sealed: bytes
    key: TenantKeyRow


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential to record: what was offered, with its secret sealed, and by whom."""

    id: str
    organization_id: str
    offered: Offered
    sealed: bytes
    key_version: int
    actor: str


async def tenant_key(db: Database, organization_id: str, version: int | None = None) -> TenantKeyRow | None:
    """Return a version of an organization's key, the newest unless told; None before its first secret."""
    row = await db.row(
        "SELECT organization_id, version, root_key_id, wrapped FROM tenant_keys"
        " WHERE organization_id = $1 AND ($2::int IS NULL OR version = $2) ORDER BY version DESC LIMIT 1",
        organization_id,
        version,
    )
    return None if row is None else _tenant_key(row)


async def add_tenant_key(db: Database, key: TenantKeyRow) -> None:
    """Record a key, unless another replica was faster with this version."""
    await db.execute(
        "INSERT INTO tenant_keys (organization_id, version, root_key_id, wrapped) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT DO NOTHING",
        key.organization_id,
        key.version,
        key.wrapped.root_key_id,
        key.wrapped.sealed,
    )


async def one_key_of_each_root(db: Database) -> list[TenantKeyRow]:
    """Return one tenant key for every root key in use, so that a start can try whether all of them open."""
    rows = await db.rows(
        "SELECT DISTINCT ON (root_key_id) organization_id, version, root_key_id, wrapped FROM tenant_keys"
        " ORDER BY root_key_id, created_at DESC LIMIT $1",
        ROOT_KEYS_MAX,
    )
    return [_tenant_key(row) for row in rows]


async def add_credential(tx: Connection, new: NewCredential) -> Credential:
    """Record a sealed credential."""
    row = await tx.fetchrow(
        "INSERT INTO credentials"
        " (id, organization_id, provider, label, base_url, hint, key_version, sealed, created_by)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " RETURNING id, organization_id, provider, label, base_url, hint, created_at, removed_at",
        new.id,
        new.organization_id,
        new.offered.provider,
        new.offered.label,
        new.offered.base_url,
        new.offered.hint,
        new.key_version,
        new.sealed,
        new.actor,
    )
    assert row is not None  # noqa: S101  # INSERT … RETURNING gives its row or raises
    return _credential(row)


async def list_credentials(db: Database, organization_id: str, page: Page) -> list[Credential]:
    """Return up to one more than a page of an organization's credentials, newest first, removed ones among them."""
    rows = await db.rows(
        "SELECT id, organization_id, provider, label, base_url, hint, created_at, removed_at FROM credentials"
        " WHERE organization_id = $1 AND ($2::text IS NULL OR ordinal <"
        " (SELECT before.ordinal FROM credentials AS before WHERE before.id = $2 AND before.organization_id = $1))"
        " ORDER BY ordinal DESC LIMIT $3",
        organization_id,
        page.after,
        page.size + 1,
    )
    return [_credential(row) for row in rows]


async def remove_credential(tx: Connection, credential_id: str, actor: str) -> Credential | None:
    """Destroy a sealed secret, once; the record of the first removal stays."""
    row = await tx.fetchrow(
        "UPDATE credentials SET sealed = NULL, removed_at = coalesce(removed_at, now()),"
        " removed_by = coalesce(removed_by, $2) WHERE id = $1"
        " RETURNING id, organization_id, provider, label, base_url, hint, created_at, removed_at",
        credential_id,
        actor,
    )
    return None if row is None else _credential(row)


async def organization_of(db: Database, credential_id: str) -> str | None:
    """Return whose a credential is, removed or not."""
    return await db.value("SELECT organization_id FROM credentials WHERE id = $1", credential_id)


async def credential_in_use(db: Database, organization_id: str, provider: str) -> SealedCredential | None:
    """Return the newest credential of a provider that was not removed."""
    row = await db.row(
        "SELECT c.id, c.base_url, c.sealed, k.organization_id, k.version, k.root_key_id, k.wrapped"
        " FROM credentials AS c JOIN tenant_keys AS k"
        " ON k.organization_id = c.organization_id AND k.version = c.key_version"
        " WHERE c.organization_id = $1 AND c.provider = $2 AND c.removed_at IS NULL ORDER BY c.ordinal DESC LIMIT 1",
        organization_id,
        provider,
    )
    return None if row is None else SealedCredential(row["id"], row["base_url"], row["sealed"], _tenant_key(row))


def _tenant_key(row: Row) -> TenantKeyRow:
    return TenantKeyRow(row["organization_id"], row["version"], Wrapped(row["root_key_id"], row["wrapped"]))


def _credential(row: Row) -> Credential:
    return Credential(
        id=row["id"],
        organization_id=row["organization_id"],
        provider=row["provider"],
        label=row["label"],
        base_url=row["base_url"],
        hint=row["hint"],
        created_at=row["created_at"],
        removed_at=row["removed_at"],
    )

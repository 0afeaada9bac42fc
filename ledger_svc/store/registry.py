"""What identity told the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.db import Database


@dataclass(frozen=True, slots=True)
class NodeFact:
    """Where a node stands as of a version."""

    id: str
    organization_id: str
    path: tuple[str, ...]
    path_version: int


async def put_nodes(db: Database, nodes: Sequence[NodeFact]) -> None:
    """Record facts; one already known is left as it is. A new organization's wallet is opened with its node.

    Each organization's are recorded apart, so that one whose books are busy keeps no other's waiting.
    """
    by_organization: dict[str, list[NodeFact]] = {}
    for node in nodes:
        by_organization.setdefault(node.organization_id, []).append(node)
    for organization_id, facts in by_organization.items():
        async with db.transaction() as tx:
            is_new = any(fact.id == organization_id for fact in facts)
            if is_new:
                await tx.execute("SELECT lock_organization($1)", organization_id)
            await tx.execute(
                """
                INSERT INTO nodes (id, path_version, organization_id, path)
                  SELECT i, v, $1, string_to_array(p, ',') FROM unnest($2::text[], $3::bigint[], $4::text[]) t(i, v, p)
                ON CONFLICT DO NOTHING
                """,
                organization_id,
                [fact.id for fact in facts],
                [fact.path_version for fact in facts],
                [",".join(fact.path) for fact in facts],
            )
            if is_new:
                await tx.execute("SELECT account_of($1, 'wallet')", organization_id)


async def organization_of(db: Database, object_id: str) -> str | None:
    """Return the organization that a node or budget belongs to."""
    organization_id: str | None = await db.value(
        """
        SELECT organization_id FROM nodes WHERE id = $1
        UNION ALL
        SELECT organization_id FROM budgets WHERE id = $1
        LIMIT 1
        """,
        object_id,
    )
    return organization_id


async def put_keys(db: Database, keys: Sequence[tuple[str, str]]) -> None:
    """Record public keys as (key id, JSON Web Key)."""
    async with db.transaction() as tx:
        await tx.executemany(
            "INSERT INTO verification_keys (key_id, jwk) VALUES ($1, $2) ON CONFLICT (key_id) DO NOTHING", list(keys)
        )


async def jwk_of(db: Database, key_id: str) -> str | None:
    """Return a public key by its id."""
    jwk: str | None = await db.value("SELECT jwk FROM verification_keys WHERE key_id = $1", key_id)
    return jwk

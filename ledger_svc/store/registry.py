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

    Every organization of which something is new has a turn: what is remembered of its paths holds no longer.
    """
    facts = sorted((node.id, node.path_version, node.organization_id, ",".join(node.path)) for node in nodes)
    if not facts:
        return
    async with db.transaction() as tx:
        new = await tx.fetch(
            """
            INSERT INTO nodes (id, path_version, organization_id, path)
              SELECT i, v, o, string_to_array(p, ',')
                FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) t(i, v, o, p)
            ON CONFLICT DO NOTHING RETURNING id, organization_id
            """,
            *(list(column) for column in zip(*facts, strict=True)),
        )
        for organization_id in sorted({row["organization_id"] for row in new}):
            await tx.execute("SELECT lock_organization($1)", organization_id)
        for organization_id in sorted(row["id"] for row in new if row["id"] == row["organization_id"]):
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
